"""The functions of `few_rows.c`, on tensors. Shapes: R rows, K inputs, N outputs, P panels."""

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gear_dist.models.generator.transformer import NORM_EPS
from gear_dist.native import load_library

LANES = 16
"""As in few_rows.c."""
_ARGUMENTS = {
    "gear_transpose": "ppii",
    "gear_product": "pppiiiiib",
    "gear_rms_norm": "pppiif",
    "gear_swiglu": "ppii",
    "gear_attend": "pppppppiiiii",
}
_TYPES = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int64,
    "b": ctypes.c_int32,
    "f": ctypes.c_float,
}


@functools.cache
def load_few_rows() -> ctypes.CDLL | None:
    """The library; None, with a warning, where it is not compiled."""
    instead = "images are generated on the CPU at a third of the speed"
    library = load_library(Path(__file__).parent, "few_rows", instead)
    if library is not None:
        for name, letters in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [_TYPES[x] for x in letters], None
    return library


class PackedMatrix(NamedTuple):
    """Weights (N, K) as few_rows.c reads them."""

    panels: Tensor
    """(P, K, LANES): N rounded up to LANES, with zeros."""
    num_outputs: int

    @property
    def num_inputs(self) -> int:
        """Inputs K."""
        return self.panels.shape[1]

    @property
    def width(self) -> int:
        """Columns of a product: N rounded up."""
        return self.panels.shape[0] * LANES


def pack(weight_NK: Tensor) -> PackedMatrix:
    """A copy of a matrix, in panels."""
    outputs, inputs = weight_NK.shape
    panels = torch.zeros(-(-outputs // LANES), inputs, LANES)
    whole = outputs // LANES
    panels[:whole] = weight_NK[: whole * LANES].unflatten(0, (whole, LANES)).transpose(1, 2)
    if rest := outputs % LANES:
        panels[whole, :, :rest] = weight_NK[whole * LANES :].t()
    return PackedMatrix(panels, outputs)


class FewRows:
    """The library with buffers for one number of rows, and the threads that share its work.

    How work is shared changes no bits: every output is computed whole, by one thread.
    """

    def __init__(self, library: ctypes.CDLL, rows: int, largest_input: int, num_threads: int):
        self._library = library
        self._transposed = torch.empty(rows * largest_input)
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def product(self, x_RK: Tensor, weight: PackedMatrix, y_RN: Tensor, *, add: bool) -> None:
        """y = x w^T, or y += x w^T."""
        rows, inputs = x_RK.shape
        assert y_RN.shape == (rows, weight.width)
        assert inputs == weight.num_inputs
        assert x_RK.is_contiguous()
        assert y_RN.is_contiguous()
        at, to = self._transposed.data_ptr(), y_RN.data_ptr()
        self._library.gear_transpose(x_RK.data_ptr(), at, rows, inputs)
        panels, width, multiply = weight.panels.data_ptr(), weight.width, self._library.gear_product

        def run(part: int, first: int, last: int) -> None:
            multiply(at, panels, to, rows, inputs, width, first, last, add)

        self._share(run, width // LANES)

    def norm(self, x_RD: Tensor, weight_D: Tensor, y_RD: Tensor) -> None:
        """As `transformer.RMSNorm`."""
        pointers = (tensor.data_ptr() for tensor in (x_RD, weight_D, y_RD))
        self._library.gear_rms_norm(*pointers, *x_RD.shape, NORM_EPS)

    def swiglu(self, x_R2F: Tensor, y_RF: Tensor) -> None:
        """silu(first half) * second half."""
        self._library.gear_swiglu(x_R2F.data_ptr(), y_RF.data_ptr(), *y_RF.shape)

    def attend(
        self,
        qkv: Tensor,
        table: Tensor,
        cache: tuple[Tensor, Tensor],
        lengths_R: Tensor,
        y_RD: Tensor,
    ) -> None:
        """Write a new key and value of each row, and attend to all of its `lengths`.

        Args:
            qkv: (R, 3 D).
            table: rotary row (h / 2, 2).
            cache: keys (R, H, S / LANES, h, LANES) and values (R, H, S, h rounded up).
            lengths_R: int64, of each row with the new one.
            y_RD: takes the result.
        """
        keys, values = cache
        _, heads, blocks, width, _ = keys.shape
        places = blocks * LANES
        scratch = torch.empty(self._num_threads, places + width)
        pointers = [x.data_ptr() for x in (qkv, table, keys, values, y_RD, lengths_R)]
        rows, call = len(y_RD), self._library.gear_attend

        def run(part: int, first: int, last: int) -> None:
            call(*pointers, scratch[part].data_ptr(), first, last, heads, width, places)

        self._share(run, rows)

    def _share(self, run: Callable[[int, int, int], None], count: int) -> None:
        """Run (part, first, last) for parts of 0 .. count - 1, a thread each."""
        if self._pool is None:
            run(0, 0, count)
            return
        parts = min(self._num_threads, count)
        ends = [count * i // parts for i in range(parts + 1)]
        list(self._pool.map(run, range(parts), ends[:-1], ends[1:]))
