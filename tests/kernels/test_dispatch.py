"""Which implementation runs, what is refused, and that numerics do not depend on surroundings."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_cases import Case, make_problem
from torch._subclasses import FakeTensorMode

from gear_kernels import (
    Affinity,
    assign,
    dispatch,
    lfq_assign,
    lfq_soft_readout,
    resolve,
    soft_readout,
    straight_through_readout,
    vocabulary_cross_entropy,
)
from gear_kernels.cross_entropy import resolve_cross_entropy
from gear_kernels.dispatch import readout_backward, readout_takes_chunks
from gear_kernels.tiles_torch import first_duplicates, row_blocks
from refusals import refused


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("no_interpreter")
def test_resolve() -> None:
    assert resolve("auto", "cpu") == "torch"
    assert resolve("auto", torch.device("cuda", 1)) == "triton"
    assert resolve("torch", "cuda") == "torch"
    assert resolve("reference", "cuda") == "reference"
    assert resolve_cross_entropy("auto", torch.zeros(1)) == "torch"
    with refused(ValueError, "implementation='fast'", "'auto'", "'reference'"):
        resolve("fast", "cpu")
    with refused(ValueError, "implementation='triton'", "CUDA", "'cpu'", "'torch'"):
        resolve("triton", "cpu")


def test_auto_leaves_wide_codes_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, imitated; by its name Triton takes all that its tiles hold."""
    monkeypatch.setattr(dispatch, "triton_installed", lambda: True)
    with FakeTensorMode():
        latents = torch.empty(4, 256, device="cuda")
    for width in (8, 32, 33, 256):
        found = dispatch.resolve_for("auto", latents, code_width=width)
        assert found == ("triton" if width <= 32 else "torch"), width
        assert dispatch.resolve_for("triton", latents, code_width=width) == "triton"
    assert dispatch.resolve_for("auto", latents) == "triton"


def test_resolve_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert resolve("auto", "cuda") == "torch"
    with refused(ValueError, "implementation='triton'", "triton package"):
        resolve("triton", "cuda")


def test_bad_inputs_are_named() -> None:
    latents, codebook, table = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5, 2)
    with refused(ValueError, "width C", "latents (3, 4)", "codebook (5, 3)"):
        assign(latents, codebook[:, :3])
    with refused(ValueError, "empty", "latents (0, 4)", "codebook (5, 4)"):
        assign(latents[:0], codebook)
    with refused(ValueError, "latents (N, C)", "latents (4,)"):
        assign(latents[0], codebook)
    with refused(ValueError, "entropy_temperature=0"):
        assign(latents, codebook, entropy_temperature=0)
    with refused(ValueError, "temperature=nan"):
        soft_readout(latents, codebook, table, temperature=float("nan"))
    with refused(ValueError, "table (5, D)", "(4, 2)"):
        soft_readout(latents, codebook, table[:4])
    with refused(ValueError, "3 indices", "(2,)"):
        straight_through_readout(latents, codebook, table, torch.zeros(2, dtype=torch.int64))
    with refused(ValueError, "30 bits", "(2, 31)"):
        lfq_assign(torch.zeros(2, 31))
    with refused(ValueError, "table (16, D)", "(5, 2)"):
        lfq_soft_readout(latents, table)
    with refused(ValueError, "hidden (N, D)", "targets (N,)", "(3, 4), (5, 4), (2,)"):
        vocabulary_cross_entropy(latents, codebook, torch.zeros(2, dtype=torch.int64))


def everything(implementation: str, autocast_backward: bool = False) -> list[torch.Tensor]:
    """Outputs and gradients of all operations on one problem."""
    problem = make_problem(Case(64, 128, 7, 64), torch.float32)
    options = {"implementation": implementation}
    found = assign(*problem[:2], **options)
    out = soft_readout(*problem[:3], **options)
    hard = straight_through_readout(*problem[:3], found.indices_N, **options)
    bits = lfq_soft_readout(problem.latents, problem.table, **options)
    loss = found.token_entropy + found.mean_probabilities_K.square().sum()
    loss = loss + ((out + hard + bits) * problem.probe).sum()
    loss = loss + vocabulary_cross_entropy(out, problem.table, found.indices_N, implementation)
    loss.backward()
    return [*found, out.detach(), bits.detach(), *(item.grad for item in problem[:3])]


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_autocast_does_not_reach_inside(implementation: str) -> None:
    expected = everything("torch")
    with torch.autocast("cpu", torch.bfloat16):
        found = everything("torch") if implementation == "torch" else None
        reference = soft_readout(
            *make_problem(Case(64, 128, 7, 64), torch.float32)[:3], implementation="reference"
        )
    assert reference.dtype == torch.float32
    if found is not None:
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_shortened_float32_products_do_not_reach_inside() -> None:
    """On processors with bfloat16 matrix units this setting rounds float32 products to bfloat16."""
    expected = everything("torch")
    torch.set_float32_matmul_precision("medium")
    try:
        found = everything("torch")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_first_duplicates() -> None:
    codebook = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [-0.0, 1.0], [2.0, 1.0]])
    assert first_duplicates(codebook).tolist() == [0, 1, 0, 1, 4]
    assert first_duplicates(codebook.double()).tolist() == [0, 1, 0, 1, 4]
    generator = torch.Generator().manual_seed(0)
    for width in (1, 3, 40):
        rows = torch.randint(0, 2, (20, width), generator=generator).float()
        many = rows[torch.randint(0, 20, (500,), generator=generator)]
        expected = (many[:, None] == many[None]).all(2).int().argmax(1)
        assert torch.equal(first_duplicates(many), expected)


def test_row_blocks_cover_all_rows_once() -> None:
    blocks = list(row_blocks(1000, 2**17, torch.zeros(1, dtype=torch.float64), 2))
    assert [row for rows, _ in blocks for row in range(1000)[rows]] == list(range(1000))
    assert {len(tile) for _, tiles in blocks[:-1] for tile in tiles} == {16}
    assert blocks[-1][1][1].shape == (1000 % 16, 2**17)
    assert blocks[0][1][0].dtype == torch.float64


def test_outputs_that_carry_no_gradient() -> None:
    problem = make_problem(Case(6, 9, 4, 3), torch.float32)
    for implementation in ("torch", "reference"):
        found = assign(*problem[:2], implementation=implementation)
        differentiable = [name for name, value in found._asdict().items() if value.requires_grad]
        assert differentiable == ["token_entropy", "mean_probabilities_K"]
        assert found.indices_N.dtype == torch.int64
        assert {value.dtype for value in found[1:]} == {torch.float32}
    bits = lfq_assign(problem.latents)
    differentiable = [name for name, value in bits._asdict().items() if value.requires_grad]
    assert differentiable == ["token_entropy", "mean_probabilities_K"]


def test_low_precision_inputs_are_read_in_float32() -> None:
    problem = make_problem(Case(6, 9, 4, 3), torch.float32)
    low = [item.detach().bfloat16() for item in problem[:2]]
    found, expected = assign(*low), assign(*(item.float() for item in low))
    assert found.affinity_N.dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_inner_product_prefers_long_codes_and_distance_near_ones() -> None:
    latents, codebook = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [9.0, 0.0]])
    assert assign(latents, codebook).indices_N.item() == 0
    longest = assign(latents, codebook, affinity=Affinity.INNER_PRODUCT)
    assert longest.indices_N.item() == 1
    assert longest.affinity_N.item() == 9


def _takes(
    tokens: int = 8192, codes: int = 16384, columns: int = 1280, dtype=torch.bfloat16, device="cpu"
) -> bool:
    table = torch.empty(codes, columns, dtype=dtype, device="meta")
    return readout_takes_chunks(tokens, table, torch.device(device))


def test_the_readouts_backward_takes_chunks_where_the_count_says_so() -> None:
    assert _takes()
    assert not _takes(dtype=torch.float32)
    assert not _takes(columns=1000)
    assert not _takes(tokens=256, codes=4096)
    assert _takes(tokens=512)


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), False), ((9, 0), True)])
def test_chunks_by_device(capability, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert _takes(device="cuda") == expected


def test_the_choice_of_the_backward_holds_in_all_threads_and_ends() -> None:
    with readout_backward("chunks"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(_takes, 1, 1, 1, torch.float32).result()
    with readout_backward("whole"):
        assert not _takes()
    assert _takes()
    with refused(ValueError, "readout_backward='half'", "chunks"), readout_backward("half"):
        pass


def test_products_of_bfloat16_are_asked_for_in_float32() -> None:
    """The overload that only CUDA has, with its fake tensors: shapes and dtypes fit."""
    pytest.importorskip("triton")
    from gear_kernels.soft_readout_backward_triton import product_into

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with FakeTensorMode():
            left, right = (torch.empty(6, 8, dtype=dtype, device="cuda") for _ in range(2))
            out = torch.empty(6, 6, device="cuda")
            assert product_into(out, left, right.T).dtype == torch.float32
