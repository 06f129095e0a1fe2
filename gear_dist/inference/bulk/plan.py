"""Which samples a bulk run makes, and which tar has which: a function of its settings. No torch."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from gear_dist.config.models import SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.seeds import derive_seeds, prompt_seed
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.json_files import build_record, parse_json, to_json

PLAN_KEY = "sampling.json"
ClassRule = Literal["per-class", "random"]
_CLASS_DRAWS = 0x636C617373  # a series of its own beside the samples' seeds
_ORDER_DRAWS = 0x6F72646572


def short_hash(weights: Mapping[str, str]) -> str:
    """A name of all weights, of their hashes by network."""
    return "-".join(weights[name][:12] for name in sorted(weights))


class BulkPlan(NamedTuple):
    """Everything that the bytes of a bulk run depend on; the destination's sampling.json."""

    weights: dict[str, str]
    """SHA-256 of each network's file."""
    num: int
    """Samples in all."""
    class_rule: ClassRule
    """per-class: each class as often as any other, but for one sample; random: drawn by the seed,
    a class for each sample."""
    classes: tuple[int, ...]
    """Classes that are sampled."""
    seed: int
    """Of sample 0; those of the others are derived from it."""
    sampling: dict[str, Any]
    """Settings of sampling, those that bytes depend on; see `lasting_settings`."""
    image_size: int
    samples_per_tar: int
    device: str
    """cpu or cuda: rounding differs between them, and so may samples."""
    format: int = 1
    prompts: tuple[str, ...] = ()
    """In place of classes, of a text-to-image generator: each in turn, and again from the first."""
    step: str = "torch"
    """What decodes on the device: compiled (the CPU's C code) or torch, which round differently."""

    @property
    def num_tars(self) -> int:
        """Tars in all; the last may have fewer samples."""
        return -(-self.num // self.samples_per_tar)

    @property
    def checkpoint(self) -> str:
        """A short hash of all weights, for metadata."""
        return short_hash(self.weights)

    def samples_of(self, tar: int) -> range:
        """Numbers of a tar's samples."""
        first = tar * self.samples_per_tar
        return range(first, min(first + self.samples_per_tar, self.num))

    def seeds(self, samples: Iterable[int]) -> list[int]:
        """Their seeds; with prompts those of `sample --prompts`."""
        if not self.prompts:
            return derive_seeds(self.seed, samples)
        before, totals = _occurrences(self.prompts)
        found = []
        for sample in samples:
            turn, place = divmod(sample, len(self.prompts))
            prompt = self.prompts[place]
            count = turn * totals[prompt] + before[place]
            found.append(prompt_seed(self.seed, prompt, count))
        return found

    def prompts_of(self, samples: Iterable[int]) -> list[str]:
        """Their prompts."""
        return [self.prompts[sample % len(self.prompts)] for sample in samples]

    def labels(self, samples: Iterable[int]) -> list[int]:
        """Their classes."""
        places = list(samples)
        if self.class_rule == "random":
            draws = derive_seeds(self.seed ^ _CLASS_DRAWS, [i + 1 for i in places])
            return [self.classes[draw * len(self.classes) >> 64] for draw in draws]
        return [self.classes[i % len(self.classes)] for i in places]

    def rows(self) -> list[int]:
        """Samples in the fixed random order of the npz: ADM's evaluator takes Inception Score over
        stretches of it, which must not be of few classes each."""
        keys = derive_seeds(_ORDER_DRAWS, range(1, self.num + 1))
        return sorted(range(self.num), key=keys.__getitem__)

    def settings(self) -> SamplingConfig:
        """The settings of sampling, typed."""
        return SamplingConfig(**self.sampling)


def lasting_settings(sampling: SamplingConfig, device: str, step: str) -> dict[str, Any]:
    """Those settings that a sample's bytes depend on where it is decoded so."""
    settings = dataclasses.asdict(sampling)
    if device == "cpu":
        del settings["compile"]
        if step == "compiled" and sampling.dtype != "bf16":  # rows are computed one by one
            del settings["batch"], settings["fixed_batches"]
    return settings


@functools.lru_cache(maxsize=2)
def _occurrences(prompts: tuple[str, ...]) -> tuple[list[int], Counter[str]]:
    """How often each prompt of a list came before its place, and in all."""
    totals: Counter[str] = Counter()
    before = []
    for prompt in prompts:
        before.append(totals[prompt])
        totals[prompt] += 1
    return before, totals


def tar_key(tar: int) -> str:
    """A tar's place in the destination."""
    return f"samples/{tar:06d}.tar"


def sample_key(sample: int) -> str:
    """What a sample's members are called in its tar."""
    return f"{sample:08d}"


def claim(storage: Storage, plan: BulkPlan) -> bool:
    """Take the destination for a plan; whether a former run of the same plan had.

    Raises:
        ConfigError: it holds something else, or samples of another plan: names the settings.
    """
    data = (to_json(plan._asdict(), indent=1) + "\n").encode()
    try:
        kept = storage.read(PLAN_KEY)
    except MissingObjectError:
        stranger = next(iter(storage.list()), None)
        if stranger is not None:
            raise ConfigError(
                f"--out {storage.address} holds {stranger.key} and no {PLAN_KEY}: name an empty "
                "folder or prefix"
            ) from None
        if storage.create(PLAN_KEY, data):
            return False
        kept = storage.read(PLAN_KEY)
    _check_same(storage, plan, kept)
    return True


def _flat(plan: BulkPlan) -> dict[str, Any]:
    """Its fields, with each setting of sampling by its own name."""
    fields = plan._asdict()
    return fields | {f"sampling.{name}": value for name, value in fields.pop("sampling").items()}


def _check_same(storage: Storage, plan: BulkPlan, kept: bytes) -> None:
    where = f"--out {storage.address}"
    try:
        former = build_record(BulkPlan, parse_json(kept))
    except ValueError as error:
        raise ConfigError(
            f"{where}: its {PLAN_KEY} is damaged ({error}): name an empty folder or prefix"
        ) from None
    ours, theirs = _flat(plan), _flat(former)
    differing = [
        f"{name}={_short(theirs.get(name))}, not {_short(ours.get(name))}"
        for name in theirs | ours
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{where} holds samples of {'; '.join(differing)}: name another folder or prefix, or "
            "give the same settings to go on there"
        )


def _short(value: Any) -> str:
    text = to_json(value)
    return text if len(text) <= 120 else text[:117] + "..."
