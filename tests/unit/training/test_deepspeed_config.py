"""What DeepSpeed is told."""

import pytest

from gear_dist.config.training import EngineConfig
from gear_dist.training.deepspeed_config import (
    CPU_BUCKET_ELEMENTS,
    CUDA_BUCKET_ELEMENTS,
    bucket_elements,
    deepspeed_config,
)


@pytest.mark.parametrize(
    ("wanted", "parameters", "on_cuda", "elements"),
    [
        (0, 1_000, True, 1_024),
        (0, 1_024, True, 1_024),
        (0, 10**12, True, CUDA_BUCKET_ELEMENTS),
        (0, 10**12, False, CPU_BUCKET_ELEMENTS),
        (500, 1_000, True, 500),
    ],
)
def test_buckets_are_no_larger_than_the_network(
    wanted: int, parameters: int, on_cuda: bool, elements: int
) -> None:
    engine = EngineConfig(bucket_elements=wanted)
    assert bucket_elements(engine, parameters, on_cuda) == elements


@pytest.mark.parametrize("stage", range(4))
def test_clipping_is_always_said(stage: int) -> None:
    """Where the key is missing DeepSpeed from 0.19.3 on clips to 1.0."""
    told = deepspeed_config(
        EngineConfig(zero_stage=stage),
        0.0,
        num_parameters=1_000,
        world_size=1,
        bf16_weights=False,
        on_cuda=True,
    )
    assert told["gradient_clipping"] == 0.0
    zero = told["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1_024
