"""Every Triton kernel, as its launcher calls it, compiles for Hopper without a GPU.

The launchers run with their launches recorded instead of done; each is then compiled for
compute capability 9.0 with the very constants, types and options it was launched with.
"""

from typing import Any, NamedTuple

import pytest
import torch

from gear_kernels import Affinity
from gear_kernels.dispatch import interpreting

triton = pytest.importorskip("triton")
if interpreting():
    pytest.skip("TRITON_INTERPRET=1 is set: kernels cannot be compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from gear_kernels import assign_triton, lfq_triton, soft_readout_triton  # noqa: E402

SHARED_MEMORY_BYTES = 227 * 1024
TOKENS, CODES, COLUMNS = 128, 256, 1280
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


class Launch(NamedTuple):
    kernel: Any
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, int]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches since the test began, none of which runs."""
    seen: list[Launch] = []

    def record(kernel, *values, grid, warmup, **keywords) -> None:
        names = kernel.arg_names
        constants = {name: value for name, value in keywords.items() if name in names}
        options = {name: value for name, value in keywords.items() if name not in names}
        plain = [name for name in names if name not in constants]
        seen.append(Launch(kernel, dict(zip(plain, values, strict=True)), constants, options))

    monkeypatch.setattr(JITFunction, "run", record)
    return seen


def type_of(value: Any) -> Any:
    """An argument's type in Triton's notation."""
    if isinstance(value, tuple):
        return tuple(type_of(item) for item in value)
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def divisible(value: Any, path: tuple[int, ...]) -> dict[tuple[int, ...], list[list[Any]]]:
    """Which arguments a launch would mark as multiples of 16: pointers, and such integers."""
    if isinstance(value, tuple):
        nested = [divisible(item, (*path, place)) for place, item in enumerate(value)]
        return {place: mark for marks in nested for place, mark in marks.items()}
    multiple = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
    return {path: [["tt.divisibility", 16]]} if multiple else {}


def check(launch: Launch) -> None:
    """Compile for Hopper; look at shared memory, atomics and matrix instructions."""
    names = launch.kernel.arg_names
    signature = {
        name: "constexpr" if name in launch.constants else type_of(launch.arguments[name])
        for name in names
    }
    marks = [divisible(value, (names.index(name),)) for name, value in launch.arguments.items()]
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs=launch.constants,
        attrs={place: mark for found in marks for place, mark in found.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch.options)
    name = launch.kernel.__name__
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES, name
    assembly = compiled.asm["ptx"]
    assert "atom." not in assembly, name
    assert "red." not in assembly.replace("shared.", ""), name
    assert ".tf32" not in assembly, name
    contracts = name in ("readout_kernel", "score_gradient_kernel", "factor_gradient_kernel")
    half = any("bf16" in str(kind) for kind in signature.values())
    assert ("wgmma.mma_async" in assembly) == (contracts and half), name


@pytest.mark.parametrize("affinity", list(Affinity))
@pytest.mark.parametrize("width", [8, 32, 256])
def test_assign(launches: list[Launch], width: int, affinity: Affinity) -> None:
    latents, codebook = torch.zeros(TOKENS, width), torch.zeros(CODES, width)
    found = assign_triton.statistics(latents, codebook, affinity, 0.01, 0.1)
    assert [launch.kernel.__name__ for launch in launches] == ["statistics_kernel", "mean_kernel"]
    if width <= 32:
        state = found.shift_N, found.log_mass_N, torch.ones(()), torch.ones(CODES)
        options = {"affinity": affinity, "temperature": 0.01, "needs": (True, True)}
        assign_triton.gradients(latents, codebook, *state, **options)
        assert len(launches) == 4
    for launch in launches:
        check(launch)


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(8, torch.bfloat16), (8, torch.float32), (32, torch.bfloat16), (256, torch.bfloat16)],
    ids=str,
)
def test_soft_readout(launches: list[Launch], width: int, dtype: torch.dtype) -> None:
    latents, codebook = torch.zeros(TOKENS, width), torch.zeros(CODES, width)
    table = torch.zeros(CODES, COLUMNS, dtype=dtype)
    options = {"affinity": Affinity.SQUARED_DISTANCE, "temperature": 0.1}
    inputs = latents, codebook, table
    out, state = soft_readout_triton.forward(*inputs, None, **options)
    if width <= 32:
        soft_readout_triton.score_gradients(*inputs, state, out, needs=(True, True), **options)
    assert len(launches) == (4 if width <= 32 else 2)
    for launch in launches:
        check(launch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lfq_soft_readout(launches: list[Launch], dtype: torch.dtype) -> None:
    high, low = torch.zeros(TOKENS, 128), torch.zeros(TOKENS, 128)
    table = torch.zeros(128 * 128, COLUMNS, dtype=dtype)
    out = lfq_triton.forward(high, low, table)
    lfq_triton.factor_gradients(high, low, table, out)
    assert len(launches) == 2
    for launch in launches:
        check(launch)
