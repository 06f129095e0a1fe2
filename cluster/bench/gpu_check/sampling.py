"""Sampling on the device: the compiled step against the plain network, batches, and speed.

Weights are at random: speed does not depend on them, and greedy tokens of the plain network are the
truth that the engine must repeat.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from verdict import Verdict, run_step, table

from gear_dist.config.loading import load_config
from gear_dist.config.models import SamplingConfig
from gear_dist.config.schema import RunConfig
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.models.generator import ClassCondition, build_generator
from gear_dist.models.tokenizers import build_tokenizer

ROOT = Path(__file__).resolve().parents[3]
GUIDANCE = 4.0


def make_pair(config: RunConfig, device: torch.device) -> GearPipeline:
    """A pair at random weights whose codes are not all alike."""
    torch.manual_seed(0)
    tokenizer, generator = build_tokenizer(config.tokenizer), build_generator(config)
    torch.nn.init.normal_(generator.output.weight, std=0.02)
    states = {"tokenizer": tokenizer.state_dict(), "generator": generator.state_dict()}
    return GearPipeline(config, states, device)


@torch.no_grad()
def greedy(
    config: RunConfig, device: torch.device, labels: torch.Tensor, tokens: int
) -> torch.Tensor:
    """The first tokens by whole forward passes of the plain network, in float32."""
    torch.manual_seed(0)
    build_tokenizer(config.tokenizer)
    generator = build_generator(config)
    torch.nn.init.normal_(generator.output.weight, std=0.02)
    generator.to(device).eval()
    condition = ClassCondition(labels.to(device))
    found = torch.empty(len(labels), 0, dtype=torch.int64, device=device)
    for _ in range(tokens):
        both = torch.cat([found, found])
        logits = generator.logits(both, condition.with_null(config.generator))[:, -1]
        wanted, null = logits.chunk(2)
        codes = (null + GUIDANCE * (wanted - null)).argmax(-1)
        found = torch.cat([found, codes[:, None]], dim=1)
    return found.cpu()


def check(device: str, scratch: Path) -> Verdict:
    """Fails where greedy tokens differ in fp32, or samples over batches that are filled up."""
    del scratch
    place = torch.device(device)
    problems, rows = [], []
    for name, config, sizes in _configs(device):
        labels = torch.arange(8) % config.generator.num_classes
        exact = SamplingConfig(guidance=GUIDANCE, temperature=0, dtype="fp32")
        tokens = min(32, config.num_tokens)
        pair = make_pair(config, place)
        found = pair.generate_indices(ClassCondition(labels), range(8), exact)[:, :tokens]
        wrong = int((found != greedy(config, place, labels, tokens)).sum())
        if wrong:
            problems.append(f"{name}: {wrong} of {found.numel()} greedy tokens differ in fp32")
        pair = make_pair(config, place)
        sampling = SamplingConfig(guidance=GUIDANCE, batch=8, fixed_batches=True)
        together = pair.generate_indices(ClassCondition(labels), range(8), sampling)
        alone = pair.generate_indices(ClassCondition(labels[3:4]), [3], sampling)
        if not torch.equal(alone[0], together[3]):
            problems.append(f"{name}: a sample depends on its batch, though batches are filled up")
        for size in sizes:
            rows.append((name, size, *_speed(pair, config, size)))
    columns = "generator | images at a time | first, s | ms a token | images/s decoded"
    return Verdict(tuple(problems), table(columns, rows))


def _speed(pair: GearPipeline, config: RunConfig, size: int) -> tuple[str, str, str]:
    """Seconds of the first batch, which compiles; then of another one."""
    labels = torch.arange(size) % config.generator.num_classes
    sampling = SamplingConfig(guidance=GUIDANCE, batch=size)

    def run(seconds: list[float]) -> None:
        started = time.perf_counter()
        indices = pair.generate_indices(ClassCondition(labels), range(size), sampling)
        seconds.append(time.perf_counter() - started)
        pair.decode(indices)
        seconds.append(time.perf_counter() - started)

    first: list[float] = []
    later: list[float] = []
    run(first)
    run(later)
    per_token = later[0] / config.num_tokens * 1e3
    return f"{first[1]:.1f}", f"{per_token:.3f}", f"{size / later[1]:.1f}"


def _configs(device: str) -> Iterator[tuple[str, RunConfig, tuple[int, ...]]]:
    if device == "cpu":
        yield "tiny", load_config([ROOT / "configs/tiny.yaml"], []), (8,)
        return
    for size in ("b", "xl"):
        config = load_config([ROOT / f"configs/generator/{size}.yaml"], [])
        yield size, config, (8, 64)


if __name__ == "__main__":
    run_step(check)
