"""A folder with a bit of everything that commands read, for hostile cases to start from."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from training_case import SETTINGS

from hostile_run import hostile_environment

RUN = "runs/tiny"
SETTING_WORDS = (
    *SETTINGS,
    "run.root=runs",
    "run.name=tiny",
    "data.train=corpus/train",
    "data.validation=corpus/validation",
    "teacher.path=teacher.safetensors",
    "stages.tokenizer.steps=1",
    "stages.joint.steps=1",
    "stages.generator.steps=1",
    "checkpoint.every_steps=1",
    "log.grid_every_steps=2",
)
CAPTION_WORDS = (
    "generator.condition=text",
    "generator.text_width=32",
    "text_encoder.name=words",
    "text_encoder.path=words.json",
    "data.captions=first",
    "data.caption_features=features",
)
# In one process: most of a command's time is the import of torch.
_PROGRAM = """
import json, sys
from gear_dist.cli.main import main
for argv in json.loads(sys.argv[1]):
    code = main(argv)
    assert code == 0, (code, argv)
"""
_SIZES = ("--size", "32", "--train", "32", "--validation", "16", "--workers", "1")
_JUDGED = ("--images-per-class=1", "--seeds=0", "--classifier-steps=1", "--max-validation=2")
_COMMANDS = (
    ("sample-corpus", "images", *_SIZES),
    ("shard", "images", "corpus", "--workers", "1", "--shard-samples", "20"),
    ("teacher", "corpus/train", "--out", "teacher.safetensors", "--steps", "2", "--batch", "2"),
    ("words", "corpus/train", "--out", "words.json", "--size", "30"),
    ("train", "tiny.yaml"),
    ("export", RUN, "--out", "model"),
    ("export", RUN, "--out", "public", "--layout", "public"),
    ("import", "public/tokenizer.pt", "public/generator.pt", "--out", "imported"),
    ("evaluate", RUN, *_JUDGED, "--cache", "judges"),
    ("report", RUN),
)


def make_tree(folder: Path, scratch: Path) -> None:
    """Make images, a corpus, a teacher, a run with checkpoints, and models of it.

    Args:
        scratch: for home and temporary files.
    """
    folder.mkdir(parents=True)
    for name in ("tmp", "home"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.from_dotlist(list(SETTING_WORDS)), folder / "tiny.yaml")
    OmegaConf.save(OmegaConf.from_dotlist(list(CAPTION_WORDS)), folder / "captions.yaml")
    subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(_COMMANDS)],
        cwd=folder,
        env=hostile_environment(scratch),
        check=True,
        timeout=300,
    )
    _add_sources(folder)
    _add_odd_files(folder)


def _add_sources(folder: Path) -> None:
    """The validation images once more, as other projects would keep them."""
    pictures = sorted((folder / "images/val").rglob("*.jpg"))
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in pictures]
    captions = [path.with_suffix(".txt").read_text() for path in pictures]
    columns = {"image": rows, "caption": captions, "label": list(range(len(rows)))}
    for name in ("pairs", "stock", "urls"):
        (folder / name).mkdir()
    pq.write_table(pa.table(columns), folder / "pairs/part.parquet")
    with tarfile.open(folder / "stock/000.tar", "w") as tar:
        for path in pictures:
            for one in (path, path.with_suffix(".json"), path.with_suffix(".txt")):
                tar.add(one, f"{path.parent.name}-{one.name}")
    lines = [f"http://127.0.0.1:9/{path.name},{path.parent.name}" for path in pictures[:3]]
    (folder / "urls/table.csv").write_text("\n".join(["url,caption", *lines]) + "\n")


def _add_odd_files(folder: Path) -> None:
    """What hostile words name: things of another type than is asked for."""
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("a line\nanother\n")
    (folder / "labels.txt").write_text("".join(f"{i}\n" for i in range(16)))
    (folder / "empty").write_bytes(b"")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")


if __name__ == "__main__":
    make_tree(Path(sys.argv[1]), Path(sys.argv[2]))
