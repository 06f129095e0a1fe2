"""Which implementation runs an operation; shared numerics (compute dtype, autocast, TF32 off)."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "torch", "reference")
MAX_TRITON_WIDTH = 256
"""Widest codes that the Triton kernels take."""
GRADIENT_WIDTH = 32
"""Widest codes whose gradients Triton takes, and that `auto` leaves to it at all.

Wider ones are dominated by products with C: exact float32 products are plain multiply-adds in
Triton, done again for each pass and each block of table columns, and the library does them once.
"""


class Affinity(StrEnum):
    """Score s[n, k] of code c_k for latent z_n; the nearest code has the largest."""

    SQUARED_DISTANCE = "squared_distance"
    """s = -|z - c|^2, evaluated as 2 z.c - |c|^2 - |z|^2."""
    INNER_PRODUCT = "inner_product"
    """s = z.c"""


class ReadoutBackward(StrEnum):
    """Who contracts g.t, (N, K) in pieces, in the backward of Triton's soft read-out."""

    AUTO = "auto"
    """By `readout_takes_chunks`."""
    CHUNKS = "chunks"
    """The library, for a chunk of codes at a time; a kernel reads it."""
    WHOLE = "whole"
    """The kernel itself, for all codes in one launch."""


CHUNKED_CAPABILITY = 9
"""Compute capability from which on `auto` takes chunks: Hopper. Counted, not measured: on an A100
the library's products alone take as long as the whole kernel."""
CHUNKED_COLUMNS = 1024
"""Table columns from which on it does; below, both come to the same."""
CHUNKED_PAIRS = 2**23
"""(token, code) pairs from which on it does; below, a launch costs what the chunks save."""

# Of the process, not of a thread: autograd runs backwards in threads of its own.
_readout_backward = ReadoutBackward.AUTO


@contextmanager
def readout_backward(choice: ReadoutBackward | str) -> Iterator[None]:
    """Inside, the backward of Triton's soft read-outs is as chosen, in all threads of the process.

    For measurements and tests: training leaves it at `auto`. Does nothing to other implementations.

    Raises:
        ValueError: an unknown name.
    """
    global _readout_backward
    if choice not in list(ReadoutBackward):
        names = tuple(item.value for item in ReadoutBackward)
        raise ValueError(f"readout_backward={choice!r} is not one of {names}")
    before, _readout_backward = _readout_backward, ReadoutBackward(choice)
    try:
        yield
    finally:
        _readout_backward = before


def readout_takes_chunks(num_tokens: int, table_KD: Tensor, device: torch.device) -> bool:
    """Whether the library contracts g.t; `auto` by counts of instructions and bytes (docs/LOG.md).

    Half-precision tables only: products of float32 ones are the same multiply-adds either way.
    Without a CUDA device, under the interpreter, as on Hopper.
    """
    if _readout_backward != ReadoutBackward.AUTO:
        return _readout_backward == ReadoutBackward.CHUNKS
    num_codes, num_columns = table_KD.shape
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < CHUNKED_CAPABILITY:
        return False
    large = num_tokens * num_codes >= CHUNKED_PAIRS and num_columns >= CHUNKED_COLUMNS
    return large and table_KD.dtype != torch.float32


# Neither of the two changes while a process runs: torch.compile, which cannot trace them, takes
# their values into its graphs.
@torch.compiler.assume_constant_result
def triton_installed() -> bool:
    """Whether the triton package is there."""
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1), on CPU tensors too."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def resolve(implementation: str, device: torch.device | str) -> str:
    """Name of the implementation that runs on `device`: 'triton', 'torch' or 'reference'.

    `auto` is Triton on CUDA devices where the package is installed, and blocked torch elsewhere.

    Raises:
        ValueError: an unknown name, or Triton where it cannot run.
    """
    kind = torch.device(device).type
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is not one of {IMPLEMENTATIONS}")
    if implementation not in ("auto", "triton"):
        return implementation
    if implementation == "auto":
        return "triton" if kind == "cuda" and triton_installed() else "torch"
    if not triton_installed():
        raise ValueError("implementation='triton' needs the triton package, which is missing")
    if kind != "cuda" and not interpreting():
        raise ValueError(
            f"implementation='triton' needs a CUDA device, not {kind!r}: use 'auto' or 'torch'"
        )
    return "triton"


def resolve_for(implementation: str, *tensors: Tensor, code_width: int = 0) -> str:
    """`resolve` for these inputs; `auto` leaves to the torch path what Triton does not take.

    And codes wider than GRADIENT_WIDTH, see there.

    Raises:
        ValueError: see `resolve`; Triton asked for by name with float64 inputs or wider codes
            than its tiles hold.
    """
    chosen = resolve(implementation, tensors[0].device)
    if chosen != "triton":
        return chosen
    reason = ""
    if compute_dtype(*tensors) == torch.float64:
        reason = "computes in float32, not float64"
    elif code_width > MAX_TRITON_WIDTH:
        reason = f"takes codes of at most {MAX_TRITON_WIDTH} entries, not {code_width}"
    if reason and implementation == "triton":
        raise ValueError(f"implementation='triton' {reason}: use 'auto' or 'torch'")
    wide = implementation == "auto" and code_width > GRADIENT_WIDTH
    return "torch" if reason or wide else "triton"


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where an input is float64, else float32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 tensors in float32: no autocast, no TF32, no bf16 shortcuts."""
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    # Settings that do not shorten float32 stay untouched: assigning one marks it as set by hand.
    shortened = [(item, item.fp32_precision) for item in settings]
    shortened = [(item, value) for item, value in shortened if value in ("tf32", "bf16")]
    try:
        for item, _ in shortened:
            item.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for item, value in shortened:
            item.fp32_precision = value


def check_codes(latents_NC: Tensor, codebook_KC: Tensor) -> None:
    """Raise ValueError where latents (N, C) and codebook (K, C) do not fit each other."""
    shapes = f"latents {tuple(latents_NC.shape)}, codebook {tuple(codebook_KC.shape)}"
    if latents_NC.ndim != 2 or codebook_KC.ndim != 2:
        raise ValueError(f"expected latents (N, C) and codebook (K, C), got {shapes}")
    if latents_NC.shape[1] != codebook_KC.shape[1]:
        raise ValueError(f"latents and codebook differ in width C: {shapes}")
    if 0 in (*latents_NC.shape, *codebook_KC.shape):
        raise ValueError(f"latents and codebook must not be empty: {shapes}")


def check_table(num_codes: int, table_KD: Tensor) -> None:
    """Raise ValueError where the table is not (num_codes, D)."""
    if table_KD.ndim != 2 or table_KD.shape[0] != num_codes or table_KD.shape[1] == 0:
        shape = tuple(table_KD.shape)
        raise ValueError(f"expected a table ({num_codes}, D), one row a code, got {shape}")


def check_temperatures(**temperatures: float) -> None:
    """Raise ValueError where a temperature is not positive."""
    for name, value in temperatures.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be > 0")
