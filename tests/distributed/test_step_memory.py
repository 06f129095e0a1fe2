"""No operation of a whole training step comes near the (N, K) matrix."""

import pytest
import step_memory_case as case
from worker_processes import run_workers

IMAGES = 2
TOKENS = IMAGES * case.TOKENS_PER_IMAGE


@pytest.mark.parametrize(
    "engine",
    [
        {"zero_stage": 0, "precision": "bf16"},
        {"zero_stage": 0},
        {"zero_stage": 3},
        {"zero_stage": 3, "family": "lfq"},
        {"zero_stage": 3, "family": "ibq"},
    ],
    ids=str,
)
def test_no_tensor_near_the_matrix(engine):
    assert TOKENS == 2048, "the size that the limit is stated for"
    [(elements, operation)] = run_workers(1, case.largest_tensor_of_a_step, IMAGES, "torch", engine)
    assert elements < TOKENS * case.CODES / 10, operation


def test_the_watch_sees_the_reference_matrix():
    [(elements, _)] = run_workers(1, case.largest_tensor_of_a_step, 1, "reference", {})
    assert elements >= case.TOKENS_PER_IMAGE * case.CODES
