"""Every kernel operation under two ZeRO-3 processes: gradients of one process and plain torch."""

import kernel_engines_case as case
import pytest
from worker_processes import run_workers

from reference_numbers import assert_close


@pytest.fixture(scope="module")
def two_ranks():
    by_rank = run_workers(2, case.engine_gradients, 2, 3, list(case.OPERATIONS))
    return [dict(zip(case.OPERATIONS, found, strict=True)) for found in by_rank]


@pytest.mark.parametrize("operation", case.OPERATIONS)
def test_gradients_equal_the_joined_batch(two_ranks, operation):
    wanted = case.plain_gradients(operation)
    for ours in (rank[operation] for rank in two_ranks):
        assert ours.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert_close(ours[name], gradient, 1e-5, name)


@pytest.mark.parametrize("operation", case.OPERATIONS)
def test_what_should_move_moves(operation):
    """The comparison is of gradients, not of zeros."""
    moved = {name for name, grad in case.plain_gradients(operation).items() if grad.abs().sum()}
    codes = {"codes.encoder.weight", "codes.encoder.bias"}
    if not operation.startswith("lfq"):
        codes |= {"codes.codebook.weight"}
    if operation == "vocabulary_cross_entropy":
        assert moved == {"table.weight"}
    elif operation in case.ENTROPIES:
        assert moved == codes
    else:
        assert moved == codes | {"table.weight"}
