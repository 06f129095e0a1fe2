"""Thirty random kills over eight runs: every run ends with the undisturbed run's weights."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from ray_nodes import ray_nodes
from ray_training_case import make_case
from safetensors.torch import load_file
from soak import Soak, Struck, draw_kills

from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.runs.run_folder import RunFolder

pytest.importorskip("ray")

# Kills of each run; runs of odd number keep their checkpoints on S3.
COUNTS = tuple(int(n) for n in os.environ.get("SOAK_KILLS", "4,4,4,4,4,4,3,3").split(","))


@pytest.mark.slow  # forty starts of workers
@pytest.mark.timeout(2400)
def test_thirty_kills_change_nothing(tmp_path: Path, object_store: StoreEndpoint) -> None:
    case = make_case(tmp_path)
    environment = case.environment | object_store.environment()
    draw = random.Random(5)
    struck: list[Struck] = []
    saved = tmp_path.with_name(f"{tmp_path.name}-saved").as_uri()  # beside the run folders
    with ray_nodes(environment) as nodes:
        soak = Soak(nodes, case, tmp_path)
        soak.run("straight", [], checkpoints=saved)
        for number, count in enumerate(COUNTS):
            name = f"soak-{number}"
            kind = "s3" if number % 2 else "file"
            where = f"s3://gear-tests/soak-{draw.randrange(10**9)}" if number % 2 else saved
            kills = draw_kills(draw, count)
            words = (name, kills, f"checkpoint.address={where}")
            struck += soak.run(*words, checkpoints=f"{where}/{name}")
            print_row(number, kind, struck[-count:])
            check_equal(RunFolder(tmp_path / "straight"), RunFolder(tmp_path / name))
    seconds = sorted(item.recovery_s for item in struck)
    print("targets:", dict(Counter(item.kill.target for item in struck)))
    print("half-written checkpoints:", sum(item.unfinished for item in struck))
    print(f"recovery s: median {seconds[len(seconds) // 2]:.0f}, most {seconds[-1]:.0f}")
    assert len(struck) == sum(COUNTS)


def print_row(number: int, kind: str, struck: list[Struck]) -> None:
    """A row of the table in docs/soak.md."""
    kills = ", ".join(
        f"{item.kill.target} at {item.kill.moment} {item.kill.step}"
        f"{' (half a checkpoint)' if item.unfinished else ''} {item.recovery_s:.0f} s"
        for item in struck
    )
    print(f"| {number} | {kind}:// | {kills} | equal |", flush=True)


def check_equal(straight: RunFolder, other: RunFolder) -> None:
    """The same weights to the bit, and a record of each step."""
    names = sorted(path.name for path in straight.weights.glob("*.safetensors"))
    assert names
    for name in names:
        expected, found = load_file(straight.weights / name), load_file(other.weights / name)
        assert expected.keys() == found.keys()
        assert [key for key in found if not found[key].equal(expected[key])] == []
    steps = [record["step"] for record in other.read_metrics()]
    assert steps == [record["step"] for record in straight.read_metrics()]
