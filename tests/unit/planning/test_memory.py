"""The memory estimate against arithmetic done by hand."""

import pytest

from gear_dist.config.loading import load_config
from gear_dist.errors import ConfigError
from gear_dist.formatting import format_bytes
from gear_dist.planning.memory import (
    ActivationBytes,
    NetworkStateBytes,
    ParameterCounts,
    estimate_memory,
    format_estimate,
)
from refusals import refused

COUNTS = ParameterCounts(1000, 100, 2000, teacher=500, lpips=30)
ACTIVATIONS = {
    "tokenizer": ActivationBytes(700, 50),
    "discriminator": ActivationBytes(60, 5),
    "generator": ActivationBytes(650, 90),
}


def estimate(*overrides, stage="joint", world_size=2, precision="fp32"):
    config = load_config(None, list(overrides))
    states = NetworkStateBytes(config.engine, config.optimizer, world_size, precision)
    return estimate_memory(states, stage, COUNTS, ACTIVATIONS, on_cuda=False)


def rows(*overrides, **options):
    return {row.part: row for row in estimate(*overrides, **options).rows}


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer", "average"),
    [
        (0, 4000, 4000, 8000, 4000),
        (1, 4000, 4000, 6000, 2000),
        (2, 4000, 2000, 6000, 2000),
        (3, 2000, 2000, 6000, 2000),
    ],
)
def test_each_zero_stage_shards_what_it_says(stage, parameters, gradients, optimizer, average):
    row = rows(f"engine.zero_stage={stage}")["tokenizer"]
    assert row[1:5] == (parameters, gradients, optimizer, average)


def test_only_the_generator_has_bf16_weights_and_only_with_masters():
    sharded = rows("engine.zero_stage=1", precision="bf16")
    assert sharded["generator"].parameters == 2 * 2000
    assert sharded["tokenizer"].parameters == 4 * 1000
    assert rows("engine.zero_stage=0", precision="bf16")["generator"].parameters == 4 * 2000


def test_sgd_has_no_moments_and_the_discriminator_no_average():
    found = rows("engine.zero_stage=0", "optimizer.name=sgd")
    assert found["tokenizer"].optimizer == 0
    assert found["discriminator"].average == 0


def test_an_offloaded_optimizer_is_the_hosts():
    row = rows("engine.zero_stage=2", "engine.optimizer_offload=cpu")["tokenizer"]
    assert (row.optimizer, row.average) == (0, 0)
    assert row.host == 6000 + 2000 + 2000, "masters and moments, average, gradients"
    assert estimate("engine.optimizer_offload=cpu").host_bytes > 0 == estimate().host_bytes


def test_frozen_networks_take_weights_alone():
    found = rows(stage="generator")
    assert found["tokenizer (frozen)"][1:] == (4000, 0, 0, 0, 0, 0, 0)
    assert found["teacher (frozen)"].fixed == found["teacher (frozen)"].parameters == 2000
    assert found.keys() == {"generator", "tokenizer (frozen)", "teacher (frozen)"}
    assert rows(stage="tokenizer").keys() == {"tokenizer", "discriminator", "LPIPS (frozen)"}


def test_zero_3_holds_what_it_keeps_gathered():
    zero_3 = ["engine.zero_stage=3"]
    assert estimate(*zero_3).gathered_bytes == 4 * 2000
    assert estimate(*zero_3, precision="bf16").gathered_bytes == max(2 * 2000, 4 * 1000)
    assert estimate(*zero_3, "engine.keep_gathered_elements=300").gathered_bytes == 4 * 300
    assert estimate("engine.zero_stage=2").gathered_bytes == 0


def test_the_total_counts_the_largest_update_once():
    found = estimate("engine.zero_stage=3")
    fixed = sum(sum(row[1:5]) for row in found.rows)
    largest = 700 + 50
    assert found.total_bytes == fixed + found.buckets_bytes + found.gathered_bytes + largest


def test_a_batch_that_does_not_divide_is_refused():
    with refused(ConfigError, "engine.global_batch=256", "engine.accumulation", "3 x 1"):
        estimate(world_size=3)


def test_the_table_names_every_network_and_says_that_it_is_rough():
    text = format_estimate(estimate("engine.zero_stage=2"))
    for word in ("tokenizer", "discriminator", "generator", "teacher", "ZeRO 2", "Rough"):
        assert word in text
    widths = {len(line) for line in text.splitlines()[1:-1]}
    assert len(widths) == 1, "the table's lines have one width"


def test_sizes_are_readable():
    sizes = [format_bytes(size) for size in (0, 1023, 1536, 3 * 1024**2, 2.5 * 1024**4)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB", "2.5 TiB"]
