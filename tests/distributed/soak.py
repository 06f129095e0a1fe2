"""Random kills of real runs: workers, nodes and drivers, at steps, checkpoints and sampling.

`Soak.run` trains once with kills and returns what happened; the weights are compared by the test.
"""

import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from ray_nodes import Nodes, kill_group
from ray_training_case import GEAR_DIST, Case
from survival_case import Driver, driver, step_of

from gear_dist.checkpoints.layout import MANIFEST, is_folder
from gear_dist.storage.open import open_storage

CHECKPOINT_STEPS = 3
GRID_STEPS = 4
TIMEOUT_S = 600.0
# A checkpoint that has not appeared by then was published between two looks.
BEGUN_S = 0.5
SETTINGS = (
    "log.every_steps=1",
    f"log.grid_every_steps={GRID_STEPS}",
    f"checkpoint.every_steps={CHECKPOINT_STEPS}",
    "run.max_failures=9",
)
MOMENTS = {
    "step": [1, 2, 5, 7, 10, 11, 13, 14, 17, 19],
    "checkpoint": [3, 6, 9, 12, 15],
    "sampling": [4, 8, 16, 20],
}
"""Steps after whose line a kill comes, by what follows that line."""


class Kill(NamedTuple):
    """What is to be killed, and when."""

    target: str
    """worker, node or driver."""
    moment: str
    step: int
    delay_s: float
    """After the line of the step; a checkpoint is waited for instead."""


class Struck(NamedTuple):
    """A kill that has happened."""

    kill: Kill
    unfinished: bool
    """Whether a checkpoint was half written."""
    recovery_s: float
    """Until the line of the next step."""


def draw_kills(draw: random.Random, count: int) -> list[Kill]:
    """Kills of one run in the order of their steps."""
    kills: list[Kill] = []
    while len(kills) < count:
        moment = draw.choice(list(MOMENTS))
        step = draw.choice(MOMENTS[moment])
        if step not in [kill.step for kill in kills]:
            target = draw.choice(["worker", "worker", "node", "driver"])
            kills.append(Kill(target, moment, step, draw.uniform(0, 0.4)))
    return sorted(kills, key=lambda kill: kill.step)


class Soak:
    """Runs on a cluster of two nodes with one worker each."""

    def __init__(self, nodes: Nodes, case: Case, root: Path) -> None:
        self._nodes = nodes
        self._case = case
        self._root = root
        self._workers = [nodes.start_node(), nodes.start_node()]

    def run(self, name: str, kills: list[Kill], *words: str, checkpoints: str) -> list[Struck]:
        """Train to the end through these kills.

        Args:
            checkpoints: address of the run's checkpoints, which is looked at after each kill.
        """
        command = [*GEAR_DIST, "train", str(self._case.config), *self._case.settings(self._root)]
        command += [f"run.name={name}", *SETTINGS, *words]
        struck: list[Struck] = []
        waiting = list(kills)
        killed_at = 0.0
        while True:
            with driver(command, self._nodes.environment, timeout_s=TIMEOUT_S) as run:
                while waiting or killed_at:
                    line = run.read_until(lambda line: step_of(line) >= 0)
                    if killed_at:
                        struck[-1] = struck[-1]._replace(recovery_s=time.monotonic() - killed_at)
                        killed_at = 0.0
                    if not waiting or step_of(line) < waiting[0].step:
                        continue
                    kill = waiting.pop(0)
                    unfinished = await_moment(kill, checkpoints)
                    killed_at = time.monotonic()
                    self._strike(kill.target, run)
                    struck.append(Struck(kill, unfinished, 0.0))
                    if kill.target == "driver":
                        break
                    run.read_until(lambda line: ": attempt " in line)
                else:
                    code, out = run.finish()
                    assert code == 0, out
                    return struck

    def _strike(self, target: str, run: Driver) -> None:
        if target == "driver":
            run.process.kill()
        elif target == "node":
            kill_group(self._workers.pop(0))
            self._workers.append(self._nodes.start_node())
        else:
            victim = random.choice(self._workers)
            for process in psutil.Process(victim.pid).children(recursive=True):
                if "RayTrainWorker" in process.name():
                    process.send_signal(signal.SIGKILL)


def await_moment(kill: Kill, checkpoints: str) -> bool:
    """Wait until a kill is due. Returns: whether a checkpoint was half written then."""
    before = list_unfinished(checkpoints)
    if kill.moment != "checkpoint":
        time.sleep(kill.delay_s)
        return bool(list_unfinished(checkpoints) - before)
    deadline = time.monotonic() + BEGUN_S
    while time.monotonic() < deadline:
        if list_unfinished(checkpoints) - before:
            return True
    return False


def list_unfinished(address: str) -> set[str]:
    """Folders of checkpoints without a manifest; those of earlier kills stay for a while."""
    keys = {item.key for item in open_storage(address).list()}
    folders = {key.split("/")[0] for key in keys if is_folder(key.split("/")[0])}
    return {folder for folder in folders if f"{folder}/{MANIFEST}" not in keys}
