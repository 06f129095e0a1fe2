"""Runs the arms, each by the commands that a user has, and measures their checkpoints.

Whatever is finished is recognised: the same command resumes where it was ended.
"""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError, UserError
from gear_dist.formatting import format_duration
from gear_dist.progress import Pace
from gear_dist.reproduce.arms import ARMS, WARM_UP, Arm

TRAIN_IMAGES, VALIDATION_IMAGES = 12_000, 3_000


class Study(NamedTuple):
    """What is compared, and how closely."""

    folder: Path
    configs: tuple[str, ...]
    """Run files that the arms differ from."""
    overrides: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    every_steps: int
    """Steps between measurements."""
    images_per_class: int
    """Generated images of each class at a measurement."""
    classifier_steps: int
    """Training steps of the classifier that judges."""
    jobs: int
    """Runs at a time, a CPU core each."""

    @property
    def shards(self) -> Path:
        """Folder of the corpus, where the configuration names none."""
        return self.folder / "shards"

    @property
    def teacher(self) -> Path:
        """File of the convnet teacher, where the command line names none."""
        return self.folder / "teacher.safetensors"

    @property
    def runs(self) -> Path:
        """Folder of run folders."""
        return self.folder / "runs"

    def base(self) -> RunConfig:
        """The configuration that the arms differ from, with what this study makes."""
        return load_config(self.configs, [*self.places(), *self.overrides])

    def places(self) -> list[str]:
        """Settings that name what the study has made."""
        given = load_config(self.configs, list(self.overrides))
        found = [f"run.root={self.runs}"]
        if not given.data.train:
            found += [f"data.{part}={self.shards / part}" for part in ("train", "validation")]
        if given.teacher.name == "convnet":
            found.append(f"teacher.path={self.teacher}")
        return found


class Run(NamedTuple):
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder and of its file of points."""
        return f"{self.arm.name}-seed{self.seed}"

    def settings(self, study: Study) -> list[str]:
        """Beside those of the study."""
        other = "generator" if self.arm.stage == "joint" else "joint"
        parent = WARM_UP if self.arm.start == WARM_UP else f"{self.arm.start}-seed{self.seed}"
        return [
            f"run.name={self.name}",
            f"run.seed={self.seed}",
            f"stages.init_from={study.runs / parent}",
            "stages.init_networks=[tokenizer,discriminator]",
            "stages.tokenizer.steps=0",
            f"stages.{other}.steps=0",
            f"checkpoint.every_steps={study.every_steps}",
            f"checkpoint.keep_every_steps={study.every_steps}",
            *self.arm.settings,
        ]


class Point(NamedTuple):
    """A run after some steps. Generated images are taken without guidance."""

    step: int
    frechet: float
    accuracy: float
    psnr_db: float
    codebook_usage: float | None
    """Of the training tokens; None where the tokenizer's codes were not counted yet."""
    cross_entropy: float
    teraflops: float
    """Arithmetic of all steps so far, counted on the step itself."""
    seconds: float
    """Of training, beside the study's other jobs."""


def run_study(study: Study, report: Callable[[str], None]) -> dict[str, list[list[Point]]]:
    """Everything, from the corpus on: points of each seed, by arm.

    Raises:
        UserError: a command failed; its output is in FOLDER/logs.
    """
    wanted = [ARMS[name] for name in study.arms]
    for arm in wanted:
        if arm.start not in {WARM_UP, *study.arms}:
            raise ConfigError(
                f"--arms {','.join(study.arms)}: {arm.name} starts from {arm.start}: add it"
            )
    _prepare(study, report)
    counter = _RunCounter(len(wanted) * len(study.seeds), report)
    points: dict[str, list[list[Point]]] = {}
    for is_later in (False, True):
        wave = [arm for arm in wanted if (arm.start != WARM_UP) == is_later]
        runs = [Run(arm, seed) for seed in study.seeds for arm in wave]
        with ThreadPoolExecutor(study.jobs) as pool:
            for run, found in zip(
                runs, pool.map(lambda run: _run(study, run, counter), runs), strict=True
            ):
                points.setdefault(run.arm.name, []).append(found)
    return {arm.name: points[arm.name] for arm in wanted}


class _RunCounter:
    """Progress with the time left, from runs that end on several threads."""

    def __init__(self, total: int, report: Callable[[str], None]):
        self._pace, self._report = Pace(total), report
        self._lock = threading.Lock()

    def finish(self, text: str, *, trained: bool) -> None:
        """One more run is done."""
        with self._lock:
            self._pace.add(timed=trained)
            left_s = self._pace.left_s
            left = "" if math.isnan(left_s) else f", about {format_duration(left_s)} left"
            self._report(f"[{self._pace.done}/{self._pace.total}{left}] {text}")


def _prepare(study: Study, report: Callable[[str], None]) -> None:
    """Corpus, teacher and warm-up, where the configuration does not name its own."""
    config = study.base()
    made = f"{study.folder}/images"
    if config.data.train == str(study.shards / "train"):
        report("corpus")
        size = ["--size", str(config.data.image_size)]
        counts = ["--train", str(TRAIN_IMAGES), "--validation", str(VALIDATION_IMAGES)]
        _command(study, "corpus", "sample-corpus", made, *size, *counts)
        _command(study, "shards", "shard", made, str(study.shards))
    if config.teacher.path == str(study.teacher) and config.alignment.enabled:
        report("teacher")
        sizes = ["--image-size", str(config.data.image_size)]
        sizes += ["--grid-size", str(config.grid_size)]
        words = [config.data.train, "--out", config.teacher.path, *sizes]
        words += ["--validation", config.data.validation] if config.data.validation else []
        _command(study, "teacher", "teacher", *words)
    report("warm-up of the tokenizer")
    stages = ["stages.joint.steps=0", "stages.generator.steps=0"]
    _train(study, WARM_UP, [f"run.name={WARM_UP}", *stages])


def _run(study: Study, run: Run, counter: _RunCounter) -> list[Point]:
    """Train and measure, or read what an earlier start has measured."""
    settings = run.settings(study)
    path = study.folder / "points" / f"{run.name}.json"
    judging = [str(study.images_per_class), str(study.classifier_steps)]
    recipe = [*study.overrides, *settings, *judging]
    kept = json.loads(path.read_text()) if path.is_file() else {}
    fresh = kept.get("recipe") != recipe
    if fresh:
        _train(study, run.name, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [str(study.runs / run.name), run.arm.stage, *judging]
        words += [str(study.folder / "judges"), str(path), json.dumps(recipe)]
        _process(study, f"{run.name}-measured", ["gear_dist.reproduce.measure", *words])
        kept = json.loads(path.read_text())
    points = [Point(**point) for point in kept["points"]]
    last = points[-1]
    text = f"Frechet {last.frechet:.1f}, asked class {last.accuracy:.1%}, {last.psnr_db:.1f} dB"
    counter.finish(f"{run.name}: {last.step} steps, {text}", trained=fresh)
    return points


def _train(study: Study, name: str, settings: Sequence[str]) -> None:
    words = [*study.configs, *study.places(), *study.overrides, *settings]
    _command(study, name, "train", *words)


def _command(study: Study, log: str, *words: str) -> None:
    _process(study, log, ["gear_dist", *words])


def _process(study: Study, log: str, words: Sequence[str]) -> None:
    """A command of its own process.

    Raises:
        UserError: it failed.
    """
    path = study.folder / "logs" / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        command = [sys.executable, "-m", *words]
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    if code != 0:
        lines = path.read_text().strip().splitlines() or ["no output"]
        error = UserError(f"{log} ended with code {code}: {lines[-1]} (see {path})")
        error.exit_code = code if code > 0 else 1
        raise error
