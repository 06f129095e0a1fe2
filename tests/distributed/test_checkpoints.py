"""Whole runs on other numbers of workers than before, and through steps that are not finite."""

from pathlib import Path

import checkpoint_case as case
import pytest
import torch
from safetensors.torch import load_file
from training_case import (
    differences,
    kind_of,
    named,
    newest_state,
    tiny_config,
    train_each,
    with_overrides,
)
from worker_processes import run_workers

from gear_dist.cli.main import main
from gear_dist.config.schema import RunConfig
from gear_dist.runs.run_folder import RunFolder
from sample_shards import SampleShards

STAGES = [0, 1, 2, 3]
NO_DROPOUTS = (
    "generator.residual_dropout=0",
    "generator.feed_forward_dropout=0",
    "generator.token_dropout=0",
    "generator.class_dropout=0",
    "sampling.guidance=1",
)


@pytest.fixture
def config(tmp_path: Path, sample_shards: SampleShards, teacher: Path) -> RunConfig:
    return tiny_config(
        tmp_path,
        sample_shards.file,
        teacher,
        "stages.tokenizer.steps=0",
        "stages.joint.steps=4",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=9",
    )


def by_stage(config: RunConfig, *overrides: str) -> list[RunConfig]:
    return [
        with_overrides(named(config, f"zero{n}"), f"engine.zero_stage={n}", *overrides)
        for n in STAGES
    ]


def test_other_numbers_of_workers_take_over_everything(config: RunConfig) -> None:
    """2 to 1 to 2 workers, ZeRO 0 to 3, and from one ZeRO stage to another: equal by name, bit
    for bit; weights, averages, moments, batch statistics."""
    configs = by_stage(config)
    run_workers(2, train_each, 2, configs)
    written = [case.states(changed) for changed in configs]
    kinds = {key.split(".")[1] for key in written[0]}
    assert {"weights", "average", "exp_avg", "exp_avg_sq", "buffers"} <= kinds
    assert any("running_mean" in key for key in written[0])
    run_workers(1, case.save_again, 1, configs)
    assert [newest_state(changed)["state"]["workers"] for changed in configs] == [1] * 4
    assert [differences(a, case.states(c)) for a, c in zip(written, configs, strict=True)] == [
        []
    ] * 4
    turned = [
        with_overrides(changed, f"engine.zero_stage={3 - changed.engine.zero_stage}")
        for changed in configs
    ]
    run_workers(2, case.save_again, 2, turned)
    for before, changed in zip(written, turned, strict=True):
        assert newest_state(changed)["state"]["workers"] == 2
        assert differences(before, case.states(changed)) == []


@pytest.mark.slow
def test_fewer_workers_go_on_as_the_same_run(config: RunConfig) -> None:
    """With the joined micro-batch and no dropouts: the next step's losses within 1e-5, then 1 %."""
    steps = 24
    longer = with_overrides(config, *NO_DROPOUTS, f"stages.joint.steps={steps}")
    configs = [with_overrides(named(longer, f"zero{n}"), f"engine.zero_stage={n}") for n in (1, 3)]
    first = [with_overrides(changed, "stages.joint.steps=3") for changed in configs]
    straight = [named(changed, f"{changed.run.name}-straight") for changed in configs]
    run_workers(2, train_each, 2, [*straight, *first])
    joined = [with_overrides(changed, "engine.max_micro_batch=8") for changed in configs]
    run_workers(1, train_each, 1, joined)
    for together, changed in zip(straight, joined, strict=True):
        environment = RunFolder(changed.run.folder).read_environment()
        assert (environment["world_size"], environment["accumulation"]) == (1, 1)
        expected, found = (
            {r["step"]: r for r in RunFolder(c.run.folder).read_metrics()}
            for c in (together, changed)
        )
        assert found.keys() == expected.keys() == set(range(1, steps + 1))
        for step in range(4, steps + 1):
            tolerance = 1e-5 if step == 4 else 1e-2
            for name in ("l1", "cross_entropy", "align_soft", "discriminator_loss"):
                value = expected[step][name]
                assert found[step][name] == pytest.approx(value, rel=tolerance), (step, name)


def test_channels_last_weights_come_back(config: RunConfig) -> None:
    changed = with_overrides(config, "engine.zero_stage=0")
    [(turned, differing)] = run_workers(1, case.channels_last, 1, changed)
    assert turned > 10
    assert differing == []


def test_a_frozen_tokenizer_that_is_channels_last_comes_back(config: RunConfig) -> None:
    changed = with_overrides(config, "stages.joint.steps=1", "stages.generator.steps=2")
    [(turned, differing)] = run_workers(1, case.channels_last_frozen, 1, changed)
    assert turned > 10
    assert differing == []


def test_fewer_workers_accumulate_so_that_the_batch_fits(config: RunConfig) -> None:
    """Without a larger `max_micro_batch` a worker takes no more at a time than at the start."""
    first = with_overrides(config, "stages.joint.steps=2")
    run_workers(2, train_each, 2, [first])
    [[(result, _)]] = run_workers(1, train_each, 1, [config])
    assert (result.state, result.step) == ("done", 4)
    environment = RunFolder(config.run.folder).read_environment()
    assert (environment["world_size"], environment["accumulation"]) == (1, 2)


def test_a_step_that_is_not_finite_moves_nothing(config: RunConfig) -> None:
    """A NaN in the gradients of one network on one rank skips all three on both ranks, and what
    forwards have moved, such as LeCam's averages."""
    exact = by_stage(config, "engine.max_skipped_steps=9", "discriminator.lecam_weight=0.5")
    rounded = by_stage(named(config, "bf16"), "engine.precision=bf16", "engine.accumulation=2")
    for network, configs in (("tokenizer", exact), ("generator", rounded)):
        found = run_workers(2, case.skip_one_step, 2, configs, network)
        for by_rank in found:
            for changed, (moved, skipped, moved_after) in zip(configs, by_rank, strict=True):
                assert (moved, skipped) == ([], 1), changed.engine
                assert {"tokenizer", "discriminator", "generator"} <= moved_after


def test_steps_that_stay_not_finite_go_back_once_and_then_stop(config: RunConfig) -> None:
    """A passing fault leaves the run as the undisturbed one; one that stays ends it."""
    longer = with_overrides(config, "stages.joint.steps=6", "engine.max_skipped_steps=2")
    straight, passing, staying, early = (
        named(longer, name) for name in ("straight", "passing", "staying", "early")
    )
    cases = [(straight, []), (passing, [4, 5]), (staying, range(4, 99)), (early, range(1, 99))]
    ends = run_workers(2, case.train_spoiled, 2, cases, "generator")
    assert ends[0] == ends[1]
    done, back, again, never = ends[0]
    assert (done, back) == ("done", "done")
    for message, step, when in (
        (again, 4, "after one rollback"),
        (never, 2, "before a checkpoint"),
    ):
        assert (
            f"generator's gradient not finite in 2 consecutive steps up to step {step}" in message
        )
        assert when in message
    assert differences(case.states(straight), case.states(passing)) == []
    assert newest_state(passing)["state"]["skipped_steps"] == 2
    assert newest_state(staying)["step"] == 2
    assert RunFolder(passing.run.folder).read_metrics()[-1]["skipped_steps"] == 2
    status = RunFolder(staying.run.folder).read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 4)


def test_a_named_checkpoint_is_gone_on_from_once(config: RunConfig) -> None:
    """run.resume=FOLDER: back to an earlier checkpoint, or into another run; the same command
    given again then goes on."""
    [found] = run_workers(1, case.go_back_and_fork, 1, config)
    straight = found["straight"]["tensors"]
    assert found["again"]["state"]["origin"] == found["earlier"]
    assert differences(straight, found["again"]["tensors"]) == []
    assert differences(straight, found["fork"]["tensors"]) == []
    assert found["longer"].step == 6
    steps = [record["step"] for record in RunFolder(config.run.folder).read_metrics()]
    assert steps == list(range(1, 7))
    assert "run.seed=5 (the run has 0)" in found["other"]
    assert "stages.init_from" in found["other"]


def test_any_checkpoint_becomes_whole_weights(config: RunConfig, tmp_path: Path) -> None:
    """Written by two ranks, exported by one process: what the run itself has published, bit for
    bit, averages and live weights; ZeRO 1 and 3, and the frozen tokenizer of the last stage."""
    configs = by_stage(config, "stages.joint.steps=2", "checkpoint.every_steps=2")[1::2]
    configs.append(with_overrides(named(configs[1], "last"), "stages.generator.steps=2"))
    run_workers(2, train_each, 2, configs)
    for changed in configs:
        folder = RunFolder(changed.run.folder)
        newest = max(folder.checkpoints.glob("step-*"))
        out = tmp_path / f"{changed.run.name}-export"
        assert main(["export", str(newest), "--out", str(out)]) == 0
        published = sorted(path.name for path in folder.weights.iterdir())
        found = sorted(path.name for path in out.glob("*.safetensors"))
        # The generator stage has no discriminator; the file of the stage before stays.
        trained = [n for n in published if n != "discriminator.safetensors"]
        assert found == (trained if changed.run.name == "last" else published)
        for name in found:
            assert differences(load_file(folder.weights / name), load_file(out / name)) == []
    live = tmp_path / "live"
    assert main(["export", str(newest), "--out", str(live), "--weights", "live"]) == 0
    weights = kind_of(newest_state(configs[-1]), "generator", "weights")
    generator = load_file(live / "generator.safetensors")
    for name, values in generator.items():
        assert torch.equal(values.view(-1), weights[f"generator.{name}"]), name


@pytest.mark.usefixtures("object_store")
def test_checkpoints_in_an_object_store_outlive_the_run_folder(config: RunConfig) -> None:
    """Two ranks, s3:// over the wire: stopped, the folder lost, resumed: as the straight run."""
    away = with_overrides(
        named(config, "away"), "checkpoint.address=s3://gear-tests-runs/checkpoints"
    )
    [(_, straight)], *_ = run_workers(2, train_each, 2, [config])
    [(end, state), _] = run_workers(2, case.lose_the_folder, 2, away)
    assert end == "done"
    assert differences(straight["tensors"], state["tensors"]) == []
    assert not list(RunFolder(away.run.folder).checkpoints.iterdir())


def test_a_store_that_refuses_costs_that_checkpoint_alone(config: RunConfig) -> None:
    """A part in the middle of the run: a warning; the last one: exit code 5, and again."""
    longer = with_overrides(config, "stages.joint.steps=6")
    first, second = named(longer, "first"), named(longer, "second")
    cases = [(first, "step-00000004"), (second, "step-00000006")]
    [middle, last], others = run_workers(2, case.train_refused, 2, cases)
    assert [end for end, _ in others] == [middle[0], last[0]]
    assert middle[0] == "done"
    [warning] = [line for line in middle[1] if "WARNING" in line]
    assert "no checkpoint of step 4: step-00000004" in warning
    assert "the disk is full" in warning
    steps = [int(path.name[5:13]) for path in RunFolder(first.run.folder).checkpoints.glob("s*")]
    assert sorted(steps) == [2, 6]
    assert "no checkpoint of step 6" in last[0]
    assert "the same command resumes" in last[0]
    status = RunFolder(second.run.folder).read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 5)
    [(result, state)], *_ = run_workers(2, train_each, 2, [second])
    assert (result.state, state["step"]) == ("done", 6)
    assert differences(case.states(first), case.states(second)) == []
