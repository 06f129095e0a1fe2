"""The joint step through real DeepSpeed engines: reference numbers, and N ranks = 1 rank."""

import joint_step_case as case
import pytest
import torch
from worker_processes import run_workers

from reference_numbers import assert_close, read_reference

LOSSES = {
    "l1": "l1",
    "vq_loss": "vq",
    "commit_loss": "commit",
    "entropy_loss": "entropy",
    "gan_loss": "gan",
    "align_soft": "align_soft",
    "tokenizer_loss": "tokenizer_loss",
    "discriminator_loss": "discriminator_loss",
    "cross_entropy": "cross_entropy",
    "align_hard": "align_hard",
    "generator_loss": "generator_loss",
    "grad_norm_tokenizer": "grad_norm_tokenizer",
    "grad_norm_discriminator": "grad_norm_discriminator",
    "grad_norm_generator": "grad_norm_generator",
}
STEPS = 5
STAGES = (0, 1, 2, 3)
# The materialised kernels are the same code at every stage.
CASES = [*((stage, "torch") for stage in STAGES), (0, "reference")]


@pytest.fixture(scope="module")
def reference_steps():
    [results] = run_workers(1, case.one_reference_step_each, CASES)
    return dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize(("zero_stage", "kernels"), CASES)
def test_reference_step(reference_steps, zero_stage, kernels):
    ours, states = reference_steps[zero_stage, kernels]
    _, theirs = read_reference("joint_step")
    for stored, name in LOSSES.items():
        # Norms hold the sharp softmaxes' gradients, the entropy their temperature.
        tolerance = 1e-4 if "norm" in stored or stored == "entropy_loss" else 1e-5
        assert_close(torch.tensor(ours[name]), theirs[stored], tolerance, stored)
    assert ours["effective_codes"] > 1 >= ours["top1_probability_soft"] >= ours["top1_probability"]
    for network, wanted in case.reference_states("after").items():
        assert states[network].keys() == wanted.keys()
        for key, value in wanted.items():
            assert_close(states[network][key], value, 2e-5, f"{network}.{key}")


@pytest.fixture(scope="module")
def one_rank():
    [[result]] = run_workers(1, case.several_steps_each, 1, [0], STEPS)
    return result


@pytest.fixture(scope="module")
def two_ranks():
    by_rank = run_workers(2, case.several_steps_each, 2, STAGES, STEPS)
    return [dict(zip(STAGES, results, strict=True)) for results in by_rank]


@pytest.mark.parametrize("zero_stage", STAGES)
def test_two_ranks_equal_one_with_the_joined_batch(one_rank, two_ranks, zero_stage):
    """Parameters, batch-norm statistics and averages after five steps, to 1e-5."""
    _, live, averaged = one_rank
    for ranks in two_ranks:
        _, ours_live, ours_averaged = ranks[zero_stage]
        for ours, theirs in ((ours_live, live), (ours_averaged, averaged)):
            for network, state in theirs.items():
                for key, value in state.items():
                    assert_close(ours[network][key], value, 1e-5, f"{network}.{key}")


def test_the_average_trails_the_weights(one_rank):
    """The published weights are the moving average, another thing than the live ones."""
    _, live, averaged = one_rank
    key = "decoder.conv_in.weight"
    assert not torch.equal(live["tokenizer"][key], averaged["tokenizer"][key])
