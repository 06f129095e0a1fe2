"""One tar of samples: generated, encoded and published whole, with a record of what it is.

A task is idempotent: the same tar has the same bytes whoever makes it and however often.
"""

import dataclasses
import functools
import hashlib
import platform
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gear_dist.data.tar_writer import TarWriter
from gear_dist.errors import ConfigError
from gear_dist.inference.bulk.plan import BulkPlan, sample_key, tar_key
from gear_dist.inference.decoding.native import load_few_rows
from gear_dist.inference.model_folder import ModelFolder, open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.png import encode_png
from gear_dist.inference.seeds import single_prompt_seed
from gear_dist.models.generator import ClassCondition, Condition
from gear_dist.runs.environment import num_cores, package_versions
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.json_files import build_record, parse_json, to_json

NETWORKS = ("tokenizer", "generator")
_ENCODERS = 8
_HASHED_BYTES = 8 << 20


class TarJob(NamedTuple):
    """Everything that a tar's task needs; pickled."""

    storage: Storage
    model: str
    """The model's folder, where the worker runs."""
    plan: BulkPlan
    class_names: tuple[str, ...]
    tar: int
    batch: int
    """Images that are generated at a time, at most."""


class TarRecord(NamedTuple):
    """What a finished tar is, beside it in the destination."""

    samples: int
    bytes: int
    crc64nvme: str


class TarOutcome(NamedTuple):
    """What a task has done."""

    tar: int
    record: TarRecord
    found: bool
    """A former run had finished it."""


def record_key(tar: int) -> str:
    """A record's place in the destination."""
    return f"records/{tar:06d}.json"


def run_job(job: TarJob) -> TarOutcome:
    """Make a tar, unless a former run has."""
    record = find_finished(job.storage, job.plan, job.tar)
    if record is not None:
        return TarOutcome(job.tar, record, True)
    # Rounding may depend on the number of threads, and samples must not.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return TarOutcome(job.tar, make_tar(job), False)
    finally:
        torch.set_num_threads(threads)


def find_finished(storage: Storage, plan: BulkPlan, tar: int) -> TarRecord | None:
    """A tar's record where a former run has published it whole, else None.

    Its size is compared, and its checksum where the store knows one: nothing is read back.
    """
    try:
        record = build_record(TarRecord, parse_json(storage.read(record_key(tar))))
        key = tar_key(tar)
        if record.samples != len(plan.samples_of(tar)) or storage.size(key) != record.bytes:
            return None
    except (MissingObjectError, ValueError):
        return None
    return record if storage.known_checksum(key) in ("", record.crc64nvme) else None


def make_tar(job: TarJob) -> TarRecord:
    """Generate, write and publish a tar, then its record.

    Raises:
        ConfigError: the model has changed since the run began.
        StorageError: the destination refuses the write.
    """
    if (step := decoding_step(job.plan.device)) != job.plan.step:
        raise ConfigError(
            f"these samples are decoded by the {job.plan.step} step, and gear-dist on "
            f"{platform.node()} has the {step} one: install it alike on all machines, with a C "
            "compiler, or name another --out"
        )
    pair = _load(job.model, job.plan.device, tuple(sorted(job.plan.weights.items())))
    samples = job.plan.samples_of(job.tar)
    with job.storage.writer(tar_key(job.tar)) as stream:
        tar = TarWriter(stream)
        for sample, png, facts in _encoded(pair, job):
            key = sample_key(sample)
            if "class" in facts:
                tar.add(f"{key}.cls", str(facts["class"]).encode())
            tar.add(f"{key}.json", to_json(facts).encode())
            tar.add(f"{key}.png", png)
            if "prompt" in facts:
                tar.add(f"{key}.txt", facts["prompt"].encode())
        checksum = tar.finish()
    record = TarRecord(len(samples), tar.position, checksum)
    job.storage.write(record_key(job.tar), to_json(record._asdict()).encode())
    return record


def _encoded(pair: GearPipeline, job: TarJob) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """A tar's samples with PNG and metadata; the next are generated while these are encoded."""
    samples, threads = job.plan.samples_of(job.tar), min(_ENCODERS, num_cores())
    sampling = dataclasses.replace(job.plan.settings(), batch=job.batch)
    batch = job.batch
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future[bytes], dict[str, Any]]] = deque()
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            seeds = job.plan.seeds(part)
            condition, named = _conditions(pair, job, part)
            images = pair.generate(condition, seeds, sampling)
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            while waiting:
                yield _finished(waiting.popleft())
            for sample, known, seed, image in zip(part, named, seeds, pixels, strict=True):
                facts = known | _facts(job, seed, known.get("prompt", ""))
                waiting.append((sample, pool.submit(encode_png, image, facts), facts))
        while waiting:
            yield _finished(waiting.popleft())


def _finished(
    item: tuple[int, "Future[bytes]", dict[str, Any]],
) -> tuple[int, bytes, dict[str, Any]]:
    sample, png, facts = item
    return sample, png.result(), facts


def _conditions(
    pair: GearPipeline, job: TarJob, samples: range
) -> tuple[Condition, list[dict[str, Any]]]:
    """Their condition, and what each is of."""
    if job.plan.prompts:
        prompts = job.plan.prompts_of(samples)
        return pair.read_prompts(prompts), [{"prompt": prompt} for prompt in prompts]
    labels, names = job.plan.labels(samples), job.class_names
    named = [
        {"class": label} | ({"class_name": names[label]} if label < len(names) else {})
        for label in labels
    ]
    return ClassCondition(torch.tensor(labels)), named


def _facts(job: TarJob, seed: int, prompt: str) -> dict[str, Any]:
    """What makes a sample again, beside its class or prompt."""
    return {
        "seed": single_prompt_seed(
            seed, prompt
        ),  # that asks for it alone; without a prompt its own
        "sampling": job.plan.sampling,
        "checkpoint": job.plan.checkpoint,
        "gear_dist": package_versions(("gear-dist",))["gear-dist"] or "",
    }


def decoding_step(device: str) -> str:
    """`BulkPlan.step` of this machine."""
    return "compiled" if device == "cpu" and load_few_rows() is not None else "torch"


def hash_weights(model: ModelFolder) -> dict[str, str]:
    """SHA-256 of the files of the networks that sampling needs.

    Raises:
        DataError: the model lacks one.
    """
    return {name: hash_file(model.require(name)) for name in NETWORKS}


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _load(path: str, device: str, weights: tuple[tuple[str, str], ...]) -> GearPipeline:
    """The pair, kept for this process's next tar.

    Raises:
        ConfigError: its weights are not those of the plan.
    """
    model = open_model(path)
    if tuple(sorted(hash_weights(model).items())) != weights:
        raise ConfigError(
            f"{path}: its weights are not those that the samples were begun with: a run in "
            "progress writes new ones; sample an exported copy (gear-dist export), or name "
            "another --out"
        )
    return GearPipeline.load(model, torch.device(device))
