"""A run that does not fit is told so before it allocates, with what would fit."""

import dataclasses
from pathlib import Path

import pytest

from gear_dist.config.loading import load_config
from gear_dist.errors import ConfigError
from gear_dist.planning import memory_advice
from gear_dist.planning.memory_advice import (
    DeviceMemoryError,
    advise,
    check_device_memory,
    out_of_memory,
    trace_footprint,
)
from refusals import refused

ROOT = Path(__file__).parents[3]
GIB = 1 << 30


@pytest.fixture(scope="module")
def published():
    """The published recipe of the joint stage, on one device: 256 images at a time.

    With checkpointed activations, whose advice would cost a second trace.
    """
    words = [f"{name}.activation_checkpointing=true" for name in ("tokenizer", "generator")]
    return load_config(ROOT / "configs/stage/joint.yaml", ["run.workers=1", *words])


@pytest.fixture(scope="module")
def footprint():
    return trace_footprint(load_config(ROOT / "configs/tiny.yaml", ["engine.global_batch=8"]), 2)


@pytest.fixture
def small(monkeypatch, footprint):
    """Tiny networks on two workers; traced once, with checkpointed activations as without."""
    monkeypatch.setattr(memory_advice, "trace_footprint", lambda *_: footprint)
    return load_config(ROOT / "configs/tiny.yaml", ["engine.global_batch=8"])


def test_the_published_recipe_on_one_device_is_refused_with_what_would_fit(published) -> None:
    said: list[str] = []
    with pytest.raises(DeviceMemoryError) as caught:
        check_device_memory(published, 1, 78 * GIB, 78 * GIB, said.append)
    message = str(caught.value)
    for part in ("78.0 GiB are free", "engine.accumulation=64", "engine.optimizer_offload=cpu"):
        assert part in message
    assert caught.value.exit_code == ConfigError.exit_code
    assert "\n" not in message
    assert said == []


def test_a_footprint_follows_the_engine_as_a_plan_of_its_own_does(footprint) -> None:
    other = load_config(
        ROOT / "configs/tiny.yaml",
        ["engine.global_batch=8", "engine.zero_stage=3", "engine.accumulation=2"],
    )
    found = footprint.needed_bytes(
        dataclasses.replace(footprint.plan.config.engine, zero_stage=3), parts=2
    )
    assert found == pytest.approx(trace_footprint(other, 2).needed_bytes(), rel=0.02)


def test_between_fitting_and_not_it_is_a_warning(small, footprint) -> None:
    needed = footprint.needed_bytes()
    said: list[str] = []
    check_device_memory(small, 2, needed, needed, said.append)
    assert said == []
    check_device_memory(small, 2, int(needed / 1.1), int(needed / 1.1), said.append)
    assert len(said) == 1
    assert "engine.accumulation=2" in said[0]
    # What others hold may be free in a moment.
    check_device_memory(small, 2, int(needed / 1.5), needed, said.append)
    assert len(said) == 2
    with refused(DeviceMemoryError, "engine.accumulation=2"):
        check_device_memory(small, 2, int(needed / 1.5), int(needed / 1.5), said.append)


def test_stages_of_zero_are_no_advice_to_a_single_device(small, footprint) -> None:
    alone = footprint._replace(plan=footprint.plan._replace(world_size=1))
    assert "engine.zero_stage=3" not in advise(alone)
    assert "engine.zero_stage=3" in advise(footprint)


def test_the_allocators_end_is_one_line_with_settings(small) -> None:
    error = out_of_memory(small, 2, "CUDA out of memory. Tried to allocate 2.00 GiB")
    assert error.exit_code == ConfigError.exit_code
    assert "Tried to allocate" in str(error)
    assert "engine.accumulation=" in str(error)
