"""Each quantizer through all stages at each ZeRO stage: the dtypes, and a stop with a resume.

Under deterministic algorithms a run that is stopped and resumed must have the weights of one that
was not, bit for bit. In one process, because starting one takes longer than the run.
"""

import shutil
import time
from pathlib import Path

import torch
from materials import make_corpus, make_teacher
from one_process import OneWorker, one_process
from safetensors.torch import load_file
from verdict import Verdict, run_step, table

from gear_dist.config.loading import load_config
from gear_dist.runs.run_folder import RunFolder
from gear_dist.training.trainer import train_worker

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = ("vq", "lfq", "ibq")
STEPS_OF_A_STAGE = 2
STOP_AFTER = 3
"""Inside the joint stage."""


def differing(first: Path, second: Path) -> list[str]:
    """Tensors of two folders of weights that differ in a bit, or are in one alone.

    Raises:
        ValueError: there are none to compare.
    """
    ours, theirs = _tensors(first), _tensors(second)
    if not ours:
        raise ValueError(f"{first}: no weights to compare")
    alone = sorted(ours.keys() ^ theirs.keys())
    return alone + [n for n in ours.keys() & theirs.keys() if not torch.equal(ours[n], theirs[n])]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.stem}.{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def check(device: str, scratch: Path) -> Verdict:
    """All families at ZeRO 0 to 3; on a CPU only ends of it."""
    corpus, teacher = make_corpus(scratch, 32, 256), make_teacher(scratch, tiny=True)
    cases = [(family, zero) for zero in range(4) for family in FAMILIES]
    if device == "cpu":
        cases = [("vq", 0), ("lfq", 3)]
    problems, rows = [], []
    with one_process(device):
        for family, zero in cases:
            started = time.monotonic()
            words = _words(device, scratch, corpus, teacher, zero)
            found = _compare(family, zero, words)
            rows.append((family, zero, *found[:2], f"{time.monotonic() - started:.0f}"))
            problems += [f"{family} at ZeRO {zero}: {problem}" for problem in found[2]]
    return Verdict(
        tuple(problems), table("quantizer | ZeRO | computed in | resumed | seconds", rows)
    )


def _words(device: str, scratch: Path, corpus: Path, teacher: Path, zero: int) -> list[str]:
    return [
        f"run.root={scratch}/runs",
        "run.launcher=local",
        f"run.device={device}",
        f"data.train={corpus}/train",
        "teacher.name=dinov2",
        f"teacher.path={teacher}",
        "engine.precision=bf16",
        "engine.deterministic=true",
        f"engine.zero_stage={zero}",
        "log.every_steps=1",
        *(
            f"stages.{name}.steps={STEPS_OF_A_STAGE}"
            for name in ("tokenizer", "joint", "generator")
        ),
    ]


def _compare(family: str, zero: int, words: list[str]) -> tuple[str, str, list[str]]:
    """Dtypes, verdict and problems of one straight and one resumed run."""
    files = [ROOT / "configs/tiny.yaml"]
    files += [] if family == "vq" else [ROOT / f"configs/tiny/{family}.yaml"]
    folders = []
    for kind in ("straight", "resumed"):
        config = load_config(files, [*words, f"run.name={family}-{zero}-{kind}"])
        shutil.rmtree(config.run.folder, ignore_errors=True)
        if kind == "resumed":
            train_worker(config, OneWorker(stop_after=STOP_AFTER))
            status = RunFolder(config.run.folder).read_status()
            assert status is not None
            assert (status.state, status.step) == ("interrupted", STOP_AFTER), status
        train_worker(config, OneWorker())
        folders.append(RunFolder(config.run.folder))
    straight, resumed = folders
    dtypes = straight.read_environment().get("compute_dtypes", {})
    kinds = sorted({dtype for kinds in dtypes.values() for dtype in kinds.values()})
    problems = [] if kinds == ["bfloat16"] else [f"computed in {', '.join(kinds) or 'nothing'}"]
    tensors = differing(straight.weights, resumed.weights)
    if tensors:
        problems.append(f"{len(tensors)} tensors differ after a resume, such as {tensors[0]}")
    verdict = f"{len(tensors)} tensors differ" if tensors else "equal bit for bit"
    return ", ".join(kinds), verdict, problems


if __name__ == "__main__":
    run_step(check)
