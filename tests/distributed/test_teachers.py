"""Several teachers in real runs: their losses, and what of them survives."""

from pathlib import Path

import pytest
import teachers_case
import training_case as case
from worker_processes import run_workers

from gear_dist.config.schema import RunConfig
from sample_shards import SampleShards
from tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for layout in ("siglip2", "dinov3"):
        save_encoder(folder / layout, layout)
    return folder


@pytest.fixture
def together(tmp_path: Path, sample_shards: SampleShards, encoders: Path) -> RunConfig:
    words = [
        "teacher.name=siglip2",
        "more_teachers.spatial.name=dinov3",
        f"more_teachers.spatial.path={encoders / 'dinov3'}",
    ]
    corpus = sample_shards.file
    return case.tiny_config(tmp_path, corpus, encoders / "siglip2", *words, *teachers_case.STILL)


def test_the_alignment_is_the_plain_mean_of_each_teachers(
    together: RunConfig, tmp_path: Path, sample_shards: SampleShards, encoders: Path
) -> None:
    """Published projectors go on under both teachers, and each under its own alone."""
    alone = [
        case.tiny_config(
            tmp_path,
            sample_shards.file,
            encoders / name,
            f"teacher.name={name}",
            f"run.name={name}",
            *teachers_case.STILL,
        )
        for name in ("siglip2", "dinov3")
    ]
    [found] = run_workers(1, teachers_case.alignments, 1, together, alone)
    both, again, first, second = found
    assert again == pytest.approx(both, abs=1e-6)
    for mean, one, other in zip(both, first, second, strict=True):
        assert abs(one - other) > 1e-4
        assert mean == pytest.approx((one + other) / 2, abs=1e-6)


def test_several_projectors_go_through_checkpoints(together: RunConfig) -> None:
    variants: list[tuple[str, ...]] = [
        ("stages.joint.steps=2", "optimizer.generator_lr=1e-3", "engine.zero_stage=2")
    ]
    found = run_workers(2, case.straight_and_resumed_each, 2, together, variants, [1])
    assert found == [[[]], [[]]]
