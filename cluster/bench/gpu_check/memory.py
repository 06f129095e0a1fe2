"""Memory of a device over the stages of a run, and after it, at each ZeRO stage."""

import gc
import shutil
from pathlib import Path

import torch
from materials import make_corpus, make_teacher
from one_process import OneWorker, one_process
from verdict import Verdict, run_step, table

from gear_dist.config.loading import load_config
from gear_dist.config.schema import RunConfig
from gear_dist.distributed.worker_context import TrainProgress
from gear_dist.training.trainer import train_worker

ROOT = Path(__file__).resolve().parents[3]
LEFT = 0.05
"""Share of a run's largest memory that may be left once it has ended."""


def allocated_bytes() -> int:
    """Bytes of tensors on the GPU; on a CPU, of all that Python refers to."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        try:
            if isinstance(item, torch.Tensor) and item.device.type == "cpu":
                storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        except (ReferenceError, RuntimeError):
            continue
    return sum(storages.values())


def measure(config: RunConfig) -> tuple[dict[str, int], int]:
    """Bytes at each stage's end, and once the run has ended; both beyond what was there."""
    shutil.rmtree(config.run.folder, ignore_errors=True)
    found: dict[str, int] = {}
    before = allocated_bytes()

    def note(progress: TrainProgress) -> None:
        found[progress.stage] = allocated_bytes()

    train_worker(config, OneWorker(on_report=note))
    gc.collect()
    return {stage: size - before for stage, size in found.items()}, allocated_bytes() - before


def check(device: str, scratch: Path) -> Verdict:
    """Fails where more than `LEFT` of a run's memory stays."""
    corpus, teacher = make_corpus(scratch, 32, 256), make_teacher(scratch, tiny=True)
    sizes = ["tokenizer.channels=64", "generator.width=1024", "generator.num_layers=12"]
    stages = range(4) if device == "cuda" else (0, 3)
    problems, rows = [], []
    with one_process(device):
        for zero in stages:
            words = [
                f"run.root={scratch}/runs",
                f"run.name=memory-{zero}",
                "run.launcher=local",
                f"run.device={device}",
                f"data.train={corpus}/train",
                "teacher.name=dinov2",
                f"teacher.path={teacher}",
                f"engine.zero_stage={zero}",
                "log.every_steps=1",
                *(f"stages.{name}.steps=2" for name in ("tokenizer", "joint", "generator")),
                *(sizes if device == "cuda" else []),
            ]
            found, left = measure(load_config([ROOT / "configs/tiny.yaml"], words))
            most = max(found.values())
            if left > LEFT * most:
                problems.append(f"ZeRO {zero}: {left / most:.0%} of a run's memory stays after it")
            shown = [f"{found[s] / 1e6:.1f}" for s in ("tokenizer", "joint", "generator")]
            rows.append((zero, *shown, f"{left / 1e6:.2f}"))
    columns = "ZeRO | tokenizer, MB | joint, MB | generator, MB | left after the run, MB"
    return Verdict(tuple(problems), table(columns, rows))


if __name__ == "__main__":
    run_step(check)
