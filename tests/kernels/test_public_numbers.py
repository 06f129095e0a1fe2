"""Reference and blocked path against the numbers of the public code, for the three families."""

import pytest
import torch
from torch import Tensor

from gear_kernels import Affinity, Assignment, assign, lfq_assign, lfq_soft_readout, soft_readout
from reference_numbers import assert_close, read_reference

IMPLEMENTATIONS = ["reference", "torch"]


def run(family: str, numbers: dict[str, Tensor], name: str) -> tuple[Assignment, Tensor]:
    """Assignment and soft read-out at the stored temperatures 0.01 and 0.1."""
    latents, codebook, table = (numbers[key] for key in ("latents", "codebook", "embedding_table"))
    if family == "lfq":
        out = lfq_soft_readout(latents, table, implementation=name)
        return lfq_assign(latents, implementation=name), out
    affinity = Affinity.SQUARED_DISTANCE if family == "vq" else Affinity.INNER_PRODUCT
    found = assign(latents, codebook, affinity=affinity, implementation=name)
    given = found.soft_log_sum_exp_N
    out = soft_readout(latents, codebook, table, given, affinity=affinity, implementation=name)
    return found, out


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["vq", "lfq", "ibq"])
def test_public_numbers(family: str, name: str) -> None:
    config, numbers = read_reference(f"codebook_{family}")
    assert (config["entropy_temperature"], config["soft_temperature"]) == (0.01, 0.1)
    found, out = run(family, numbers, name)
    distances = numbers["distance"]
    assert torch.equal(found.indices_N, numbers["indices"].flatten())
    # Distances near 0 are differences of numbers near 1.
    assert_close(-found.affinity_N, distances.amin(1), 1e-5, "affinity", floor=1e-6)
    assert_close(
        found.soft_log_sum_exp_N, torch.logsumexp(-distances / 0.1, 1), 1e-5, "log-sum-exp", 1e-5
    )
    assert_close(out, numbers["soft_readout"], 2e-5, "soft read-out")
    assert_close(found.token_entropy, numbers["sample_entropy"], 1e-4, "sample entropy")
    mean_K = found.mean_probabilities_K
    average_entropy = -(mean_K * torch.log(mean_K + 1e-5)).sum()
    assert_close(average_entropy, numbers["average_entropy"], 1e-5, "average entropy")
    top = torch.softmax(-distances, 1).amax(1).mean()
    assert_close(found.top1_probability, top, 1e-5, "top-1 probability")
    top_soft = torch.softmax(-distances / 0.1, 1).amax(1).mean()
    assert_close(found.top1_probability_soft, top_soft, 2e-5, "top-1 probability, soft")
