"""Every Triton kernel, as its launcher calls it, compiles for Ampere and Hopper without a GPU."""

import os

import pytest

from gear_kernels.dispatch import interpreting

triton = pytest.importorskip("triton")
if interpreting():
    pytest.skip("TRITON_INTERPRET=1 is set: kernels cannot be compiled", allow_module_level=True)

import launches  # noqa: E402
import torch  # noqa: E402
from launches import Launch, Resources  # noqa: E402

from gear_kernels import Affinity  # noqa: E402
from gear_kernels.dispatch import readout_backward  # noqa: E402
from gear_kernels.soft_readout_backward_triton import score_gradients  # noqa: E402
from largest_tensor import LargestTensor  # noqa: E402

# By compute capability: what a block may have, and the matrix instruction that bfloat16 runs on.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}
# What a kernel spills once, at its end, costs nothing that counts; 968 bytes in a loop did.
STACK_BYTES = 288
KERNELS = {
    "assign": ["statistics_kernel", "mean_kernel"],
    "assign gradients": ["latents_gradient_kernel", "codebook_gradient_kernel"],
    "soft_readout": ["shift_kernel", "readout_kernel"],
    "soft_readout gradients": ["row_products_kernel", "score_gradient_kernel"],
    "lfq": ["readout_kernel", "factor_gradient_kernel"],
}


def check(launch: Launch, capability: int) -> None:
    """Compile; look at shared memory, spills, atomics and matrix instructions."""
    compiled, name = launch.compile(capability), launch.name
    found = Resources.of(compiled)
    assert found.shared_bytes <= SHARED_BYTES[capability], name
    assert found.stack_bytes <= STACK_BYTES, name
    assert found.instructions > 50, name
    assembly = compiled.asm["ptx"]
    assert "atom." not in assembly, name
    assert "red." not in assembly.replace("shared.", ""), name
    assert ".tf32" not in assembly, name
    contracts = name in ("readout_kernel", "score_gradient_kernel", "factor_gradient_kernel")
    contracts = contracts and not launch.constants.get("GIVEN_PULL", False)
    half = any("bf16" in str(kind) for kind in launch.signature.values())
    assert (MATRIX_INSTRUCTION[capability] in assembly) == (contracts and half), name
    assert (found.matrix_instructions > 0) == (contracts and half), name


def test_the_version_is_the_one_asked_for() -> None:
    """`make test-tritons` puts another first on the path: it must be the one that is found."""
    assert triton.__version__ == os.environ.get("EXPECTED_TRITON", triton.__version__)


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("variant", launches.variants())
def test_compiles(variant: str, capability: int) -> None:
    with launches.recorded() as seen:
        launches.variants()[variant]()
    operation, *_ = variant.split(",")
    expected = list(KERNELS[operation])
    if "C 256" not in variant:
        expected += KERNELS.get(f"{operation} gradients", [])
    assert [launch.name for launch in seen] == expected
    for launch in seen:
        check(launch, capability)


def test_chunks_hold_no_more_than_their_budgets() -> None:
    """g.t and the partial sums, at a size where one of all pairs would be sixteen times as large.

    Launches are recorded, products computed: what is allocated is what training would.
    """
    tokens, codes = 16384, 16384
    latents, codebook = torch.zeros(tokens, 8), torch.zeros(codes, 8)
    table, out_grad = (torch.zeros(size, 4, dtype=torch.bfloat16) for size in (codes, tokens))
    state = out_grad, out_grad, torch.zeros(tokens), torch.zeros(tokens)
    options = {"affinity": Affinity.SQUARED_DISTANCE, "temperature": 0.1, "needs": (True, True)}
    with launches.recorded() as seen, readout_backward("chunks"), LargestTensor() as watch:
        score_gradients(latents, codebook, table, state, out_grad, **options)
    assert len(seen) == 1 + 2 * 16
    pulls = {launch.arguments["out_grad_ptr"] for launch in seen[1:]}
    assert {tuple(pull.shape) for pull in pulls} == {(8192, 1024)}
    assert len({pull.data_ptr() for pull in pulls}) == 1
    assert 2**23 <= watch.elements <= 2**24
