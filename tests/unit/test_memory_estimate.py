"""The memory estimate against arithmetic done by hand."""

import pytest

from gear_dist.config_files import load_config
from gear_dist.errors import ConfigError
from gear_dist.memory_estimate import (
    ParameterCounts,
    estimate_memory,
    format_bytes,
    format_estimate,
)

COUNTS = ParameterCounts(tokenizer=1000, discriminator=100, generator=2000, teacher=500)
JOINT = ["stages.joint.steps=1", "losses.lpips_weight=0"]


def estimate(*overrides, counts=COUNTS, world_size=2, precision="fp32"):
    config = load_config(None, [*JOINT, *overrides])
    return estimate_memory(
        config, counts, world_size=world_size, precision=precision, on_cuda=False
    )


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


def test_frozen_networks_take_weights_alone():
    found = rows("stages.joint.steps=0", "stages.generator.steps=5")
    assert found["tokenizer (frozen)"][1:] == (4000, 0, 0, 0, 0)
    assert found["teacher (frozen)"][1:] == (2000, 0, 0, 0, 0)
    assert "discriminator" not in found
    assert "generator" not in rows("stages.joint.steps=0", "stages.tokenizer.steps=5")


def test_the_public_tokenizer_at_its_batch_matches_what_was_measured():
    """58 GiB of tokenizer activations at 32 images of 256 px under bf16 autocast."""
    counts = ParameterCounts(71_900_000, 2_800_000, 116_000_000)
    config = load_config(None, ["stages.tokenizer.steps=1", "losses.lpips_weight=0"])
    found = estimate_memory(config, counts, world_size=8, precision="bf16", on_cuda=True)
    assert found.micro_batch == 32
    assert found.rows[0].activations == pytest.approx(58 * 1024**3, rel=0.1)


def test_a_tokenizer_of_more_blocks_takes_more():
    """IBQ has 4 residual blocks an encoder level and 5 a decoder level, LFQ 4 and 4."""
    vq = rows()["tokenizer"].activations
    blocks = "tokenizer.num_res_blocks=4"
    ibq = rows("tokenizer.quantizer=ibq", blocks)["tokenizer"].activations
    lfq = rows("tokenizer.quantizer=lfq", "tokenizer.code_width=14", blocks)
    assert ibq > lfq["tokenizer"].activations > 1.4 * vq


def test_only_the_reference_kernels_pay_for_the_matrix_of_tokens_and_codes():
    base = rows("engine.kernels=torch")["tokenizer"].activations
    reference = rows("engine.kernels=reference")["tokenizer"].activations
    assert reference - base == 9 * 4 * (128 * 256) * 16384


def test_activations_follow_the_micro_batch():
    one = rows("engine.global_batch=64")["generator"].activations
    assert rows("engine.global_batch=128")["generator"].activations == 2 * one
    assert rows("engine.global_batch=128", world_size=4)["generator"].activations == one
    halved = rows("engine.global_batch=128", "engine.accumulation=2")
    assert halved["generator"].activations == one


def test_the_total_counts_the_largest_activations_once():
    found = estimate()
    fixed = sum(sum(row[1:5]) for row in found.rows)
    largest = max(row.activations for row in found.rows)
    assert found.total_bytes == fixed + found.buckets_bytes + largest


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"engine\.global_batch=256 is not divisible"):
        estimate(world_size=3)


def test_the_table_names_every_network_and_says_that_it_is_rough():
    text = format_estimate(estimate("engine.zero_stage=2"))
    for word in ("tokenizer", "discriminator", "generator", "teacher", "ZeRO 2", "rough"):
        assert word in text
    widths = {len(line) for line in text.splitlines()[1:-1]}
    assert len(widths) == 1, "the table's lines have one width"


def test_sizes_are_readable():
    sizes = [format_bytes(size) for size in (0, 1023, 1536, 3 * 1024**2, 2.5 * 1024**4)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB", "2.5 TiB"]
