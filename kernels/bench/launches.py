"""Every Triton kernel as its launcher calls it, recorded and compiled without a GPU.

The launchers run with their launches recorded instead of done; each is then compiled for a compute
capability with the very constants, types and options it was launched with.

Shapes: N tokens, K codes, C code width, D table width.
"""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from gear_kernels import Affinity, assign_triton, lfq_triton, soft_readout_triton
from gear_kernels.dispatch import ReadoutBackward, readout_backward
from gear_kernels.tiles_triton import GRADIENT_WIDTH

TOKENS, CODES, COLUMNS = 128, 256, 1280
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


# An instruction of the disassembly: address, perhaps a predicate, and the name up to its first dot.
_INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE
)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


class Resources(NamedTuple):
    """What a compiled kernel takes, by its disassembly. Counts of instructions as they stand in
    the code: a loop's body counts once."""

    registers: int
    """Of a thread, at most 255."""
    stack_bytes: int
    """Of a thread: what registers did not hold."""
    shared_bytes: int
    """Of a block."""
    instructions: int
    multiply_adds: int
    """FFMA: plain float32 ones."""
    matrix_instructions: int
    """HMMA and HGMMA; one of the latter does the work of many of the former."""
    special_functions: int
    """MUFU: exponentials, logarithms, reciprocals."""
    spills: int
    """Stores to and loads from the stack."""

    @classmethod
    def of(cls, compiled: Any) -> "Resources":
        """By the disassembler that comes with Triton."""
        program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(program), "-res-usage", "-sass", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage = _USAGE.search(text)
        assert usage is not None, text[:500]
        names = _INSTRUCTION.findall(text)
        return cls(
            registers=int(usage[1]),
            stack_bytes=int(usage[2]),
            shared_bytes=compiled.metadata.shared,
            instructions=len(names) - names.count("NOP"),
            multiply_adds=names.count("FFMA"),
            matrix_instructions=names.count("HMMA") + names.count("HGMMA"),
            special_functions=names.count("MUFU"),
            spills=names.count("STL") + names.count("LDL"),
        )


class Launch(NamedTuple):
    """One launch that did not run."""

    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The kernel's name."""
        name: str = self.kernel.__name__
        return name

    @property
    def signature(self) -> dict[str, Any]:
        """Types of all arguments in Triton's notation."""
        return {
            name: "constexpr" if name in self.constants else _type_of(self.arguments[name])
            for name in self.kernel.arg_names
        }

    def compile(self, capability: int) -> Any:
        """The kernel compiled for compute capability 80 (8.0), 90, ...: Triton's own object."""
        names = self.kernel.arg_names
        marks = [_divisible(value, (names.index(name),)) for name, value in self.arguments.items()]
        source = ASTSource(
            fn=self.kernel,
            signature=self.signature,
            constexprs=self.constants,
            attrs={place: mark for found in marks for place, mark in found.items()},
        )
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options=self.options)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches inside, none of which runs: what kernels would write stays uninitialised."""
    seen: list[Launch] = []

    def record(kernel: Any, *values: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        del grid, warmup
        names = kernel.arg_names
        constants = {name: value for name, value in keywords.items() if name in names}
        options = {name: value for name, value in keywords.items() if name not in names}
        plain = [name for name in names if name not in constants]
        arguments = dict(zip(plain, values, strict=True))
        seen.append(Launch(kernel, arguments, constants, options))

    original = JITFunction.run
    JITFunction.run = record
    try:
        yield seen
    finally:
        JITFunction.run = original


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_type_of(item) for item in value)
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def _divisible(value: Any, path: tuple[int, ...]) -> dict[tuple[int, ...], list[list[Any]]]:
    """Which arguments a launch would mark as multiples of 16: pointers, and such integers."""
    if isinstance(value, tuple):
        nested = [_divisible(item, (*path, place)) for place, item in enumerate(value)]
        return {place: mark for marks in nested for place, mark in marks.items()}
    multiple = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
    return {path: [["tt.divisibility", 16]]} if multiple else {}


def assign_launches(width: int, affinity: Affinity) -> None:
    """Statistics and mean probabilities, and the gradients where Triton takes them."""
    latents, codebook = torch.zeros(TOKENS, width), torch.zeros(CODES, width)
    found = assign_triton.statistics(latents, codebook, affinity, 0.01, 0.1)
    if width <= GRADIENT_WIDTH:
        state = found.shift_N, found.log_mass_N, torch.ones(()), torch.ones(CODES)
        options: dict[str, Any] = {"affinity": affinity, "temperature": 0.01}
        assign_triton.gradients(latents, codebook, *state, needs=(True, True), **options)


def soft_readout_launches(
    width: int, dtype: torch.dtype, backward: ReadoutBackward = ReadoutBackward.WHOLE
) -> None:
    """Forward without a log-sum-exp at hand, and the gradients where Triton takes them."""
    latents, codebook = torch.zeros(TOKENS, width), torch.zeros(CODES, width)
    inputs = latents, codebook, torch.zeros(CODES, COLUMNS, dtype=dtype)
    options: dict[str, Any] = {"affinity": Affinity.SQUARED_DISTANCE, "temperature": 0.1}
    out, state = soft_readout_triton.forward(*inputs, None, **options)
    if width <= GRADIENT_WIDTH:
        with readout_backward(backward):
            soft_readout_triton.score_gradients(*inputs, state, out, needs=(True, True), **options)


def lfq_launches(dtype: torch.dtype) -> None:
    """Forward and gradients of the factors, 14 bits."""
    high, low = torch.zeros(TOKENS, 128), torch.zeros(TOKENS, 128)
    table = torch.zeros(128 * 128, COLUMNS, dtype=dtype)
    out = lfq_triton.forward(high, low, table)
    lfq_triton.factor_gradients(high, low, table, out)


def variants() -> dict[str, Callable[[], None]]:
    """Every set of launches that some configuration leads to, by a name for reports."""
    found: dict[str, Callable[[], None]] = {}
    for width in (8, 32, 256):
        for affinity in Affinity:
            found[f"assign, C {width}, {affinity.value}"] = lambda w=width, a=affinity: (
                assign_launches(w, a)
            )
    for width, dtype in (
        (8, torch.bfloat16),
        (8, torch.float32),
        (32, torch.bfloat16),
        (32, torch.float32),
        (256, torch.bfloat16),
    ):
        found[f"soft_readout, C {width}, {_short(dtype)} table"] = lambda w=width, d=dtype: (
            soft_readout_launches(w, d)
        )
    for width, dtype in itertools.product((8, 32), (torch.bfloat16, torch.float32)):
        found[f"soft_readout, C {width}, {_short(dtype)} table, backward in chunks"] = (
            lambda w=width, d=dtype: soft_readout_launches(w, d, ReadoutBackward.CHUNKS)
        )
    for dtype in (torch.bfloat16, torch.float32):
        found[f"lfq, 14 bits, {_short(dtype)} table"] = lambda d=dtype: lfq_launches(d)
    return found


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
