"""`gear-dist quickstart`: from nothing to a trained pair, samples and a report, on one machine.

Every step is a command that can be run by hand, and recognises what is there: run again, the whole
resumes where it was left.
"""

import argparse
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gear_cluster.demo import object_store
from gear_cluster.launch import launch
from gear_data_prep.cli import main as data_prep
from gear_dist.cli import evaluate, report, sample, teacher, words
from gear_dist.config.data import DataConfig
from gear_dist.config.loading import load_config
from gear_dist.config.run import RunSection
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import EngineConfig
from gear_dist.data.first_batches import first_captions
from gear_dist.data.manifest import load_manifest
from gear_dist.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError, DataError
from gear_dist.formatting import format_duration
from gear_dist.models.text_encoders.words import read_vocabulary, words_width
from gear_dist.runs.environment import num_cores
from gear_dist.runs.run_folder import RunFolder
from gear_dist.source_tree import source_folders
from gear_dist.storage.open import open_storage
from gear_dist.training.sample_grids import NUM_SAMPLES

STATE = Path(".gear")
BUCKET = "s3://gear"
SAMPLE_CORPUS = "sample"
NUM_STEPS = 6
MOST_THREADS = 8


class QuickstartRequest(NamedTuple):
    """What the command line asked for."""

    data: Path | None
    """An ImageFolder tree; None: the sample corpus."""
    configs: Sequence[Path]
    run_name: str
    """Empty: named after data and seed."""
    seed: int
    overrides: list[str]
    verbose: bool = False

    @property
    def corpus(self) -> str:
        """Name of the corpus: one a source folder."""
        if self.data is None:
            return SAMPLE_CORPUS
        path = self.data.resolve()
        slug = re.sub(r"[^a-z0-9]+", "-", path.name.lower()).strip("-") or "data"
        return f"{slug}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"

    @property
    def run(self) -> str:
        """Name of the run: another seed or corpus is another run."""
        if self.run_name:
            return self.run_name
        parts = ["demo", *([self.corpus] if self.data else [])]
        return "-".join([*parts, f"seed{self.seed}"] if self.seed else parts)

    @property
    def train_address(self) -> str:
        """Where the training shards go."""
        return f"{BUCKET}/{self.corpus}/train"

    @property
    def validation_address(self) -> str:
        """Where the validation shards go."""
        return f"{BUCKET}/{self.corpus}/validation"


def quickstart(request: QuickstartRequest) -> int:
    """Run all steps; returns the exit code.

    Raises:
        UserError: of any step; run again, it continues there.
    """
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "RAY_ADDRESS is set, but quickstart trains on this machine: unset it, or use "
            "`gear-dist shard` and `ray job submit ... -- gear-dist train` for a cluster"
        )
    if request.data is not None and not request.data.is_dir():
        raise DataError(f"{request.data}: no such folder of images")
    # The settings are checked before anything is made.
    config = load_config(request.configs, _overrides(request))
    steps = _Steps()
    steps.begin("object store")
    _use_store()
    steps.begin("shards")
    _make_shards(request)
    if _needs_words(config):
        _make_words(config.text_encoder.path, config.data)
    config = _fit_to_corpus(request, config)
    steps.begin("teacher")
    if config.teacher.name == "convnet" and config.alignment.enabled:
        _make_teacher(config.teacher.path, config.data, config.grid_size)
    else:
        print("not needed by this configuration")
    steps.begin("training")
    if not _train(config, request.verbose):
        return EXIT_INTERRUPTED
    folder = RunFolder(config.run.folder)
    samples = folder.path / "samples.png"
    steps.begin("evaluation")
    if not _is_up_to_date(folder.evaluation_path, folder):
        _run(evaluate, "evaluate", str(folder.path), *_threads(), *_named_attributes(request))
    steps.begin("samples and report")
    if not _is_up_to_date(samples, folder):
        _run(sample, "sample", str(folder.path), "--out", str(samples), *_prompts(config))
    _run(report, "report", str(folder.path))
    print(f"\ndone in {format_duration(steps.elapsed_s)}")
    print(f"sample grid: {samples}")
    print(f"report:      {folder.report_path}")
    return EXIT_DONE


class _Steps:
    """Headings with the elapsed time."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._number = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def begin(self, title: str) -> None:
        self._number += 1
        elapsed = format_duration(self.elapsed_s)
        print(f"\n[{self._number}/{NUM_STEPS}] {title}  ({elapsed})", flush=True)


def _run(module: ModuleType, *words: str) -> None:
    """Run a module's command in this process, as the command line would."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    module.add_commands(commands)
    args = parser.parse_args(words)
    code = args.run(args)
    assert code == EXIT_DONE, f"{words[0]} returned {code}: failures are raised"


def _threads() -> list[str]:
    """All cores, up to what small networks have use for: the steps run one at a time here."""
    return ["--threads", str(min(num_cores(), MOST_THREADS))]


def _needs_words(config: RunConfig) -> bool:
    return config.reads_captions and config.text_encoder.name == "words"


def _make_words(path: str, data: DataConfig) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _run(words, "words", data.train, "--out", path)


def _named_attributes(request: QuickstartRequest) -> list[str]:
    """What the sample corpus's captions say of the object itself; of another corpus, all it has."""
    return ["--attributes", "shape,hue,texture"] if request.data is None else []


def _prompts(config: RunConfig) -> list[str]:
    """Captions of held-out images, for a generator that takes some."""
    if not config.reads_captions:
        return []
    captions = first_captions(config.data, NUM_SAMPLES)
    return [word for caption in captions for word in ("--prompt", caption)]


def _overrides(request: QuickstartRequest, *more: str) -> list[str]:
    """The user's come last and win."""
    weights = STATE / "teachers" / f"{request.corpus}.safetensors"
    ours = [
        f"run.name={request.run}",
        f"run.seed={request.seed}",
        f"data.train={request.train_address}",
        f"data.validation={request.validation_address}",
        f"teacher.path={weights}",
        f"text_encoder.path={STATE / 'words' / request.corpus}.json",
    ]
    return [*ours, *more, *request.overrides]


def _use_store() -> None:
    """The store's credentials go into this process's environment, which local workers inherit."""
    folder = STATE / "object_store"
    store = object_store.ensure_running(folder)
    os.environ.update(store.environment())
    print(f"{store.endpoint}, objects in {folder}; `gear-dist store stop` ends it")


def _make_shards(request: QuickstartRequest) -> None:
    source = request.data
    if source is None:
        source = STATE / "sample_corpus"
        _run(data_prep, "sample-corpus", str(source))
    _run(data_prep, "shard", str(source), f"{BUCKET}/{request.corpus}")


def _fit_to_corpus(request: QuickstartRequest, config: RunConfig) -> RunConfig:
    """Classes, batch and workers as corpus and machine allow; what the user set stays."""
    info = load_manifest(open_storage(config.data.train)).info
    workers = _choose_workers(config.run, config.engine)
    batch = min(config.engine.global_batch, info.num_samples)
    batch -= batch % (workers * config.engine.accumulation)
    if batch == 0:
        raise DataError(
            f"{config.data.train}: {info.num_samples} images are too few for {workers} workers"
        )
    more = [f"generator.num_classes={max(len(info.classes), 1)}"]
    if _needs_words(config):
        width = words_width(read_vocabulary(config.text_encoder.path))
        more.append(f"generator.text_width={width}")
    if batch != config.engine.global_batch:
        print(f"engine.global_batch={batch}, because there are {info.num_samples} images")
        more.append(f"engine.global_batch={batch}")
    if config.run.launcher == "ray":
        more.append(f"run.workers={workers}")
    return load_config(request.configs, _overrides(request, *more))


def _choose_workers(run: RunSection, engine: EngineConfig) -> int:
    """One a GPU, or two on CPU; fewer where the batch does not divide by that."""
    import torch

    if run.launcher == "local":
        return 1
    gpus = torch.cuda.device_count() if run.device != "cpu" else 0
    most = run.workers or gpus or 2
    images = engine.global_batch // engine.accumulation
    fits: Callable[[int], bool] = lambda workers: images % workers == 0  # noqa: E731
    return next(filter(fits, range(most, 0, -1)))


def _make_teacher(path: str, data: DataConfig, grid_size: int) -> None:
    words = ["--out", path, "--validation", data.validation]
    words += ["--image-size", str(data.image_size), "--grid-size", str(grid_size)]
    words += _threads()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _run(teacher, "teacher", data.train, *words)


def _train(config: RunConfig, verbose: bool) -> bool:
    """Train, go on, or recognise a finished run; whether it is done."""
    config.check_trainable()
    folder = RunFolder(config.run.folder)
    status = folder.read_status()
    if folder.holds_run():
        folder.check_same_run(config)
        if status and status.state == "done" and status.step >= config.stages.total_steps:
            print(f"{folder.path} is done ({status.step} steps): not trained again")
            return True
        print(f"resuming {folder.path}")
    result = launch(config, verbose=verbose)
    if result.state == "interrupted":
        print(f"interrupted at step {result.step}; run the same command to resume")
    return result.state == "done"


def _is_up_to_date(path: Path, folder: RunFolder) -> bool:
    """Whether a file was made from the run's present weights; says so."""
    weights = list(folder.weights.glob("*.safetensors"))
    if not path.is_file() or any(w.stat().st_mtime > path.stat().st_mtime for w in weights):
        return False
    print(f"{path} is up to date")
    return True


def default_config() -> Path:
    """configs/demo.yaml of the working folder, else of the checkout that this runs from."""
    here = Path("configs/demo.yaml")
    folders = source_folders()
    return here if here.is_file() or not folders else Path(folders[0]) / here


def request_from(args: Any, overrides: Sequence[str]) -> QuickstartRequest:
    """The request of parsed arguments."""
    return QuickstartRequest(
        data=args.data,
        configs=args.configs or [default_config()],
        run_name=args.run_name,
        seed=args.seed,
        overrides=list(overrides),
        verbose=args.verbose,
    )
