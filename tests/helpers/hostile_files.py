"""Files of ours and of others, damaged at random: bytes, and what the bytes mean.

Nothing here is made for a certain reader: bytes are flipped, cut and swapped, and values become
others of another type or size, as the seed draws them.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hostile_run import Case, trains
from hostile_tree import RUN

ODD = (None, True, False, 0, -1, 1.5, 10**30, -(10**30), 1e308, float("nan"), "", "x", "ü圖", "\0")
"""Values that take another's place; empty and nested containers come beside these."""

_TOKENIZE = ("tokenize", "{model}", "--images", "images/val/circle_solid", "--out", "codes")
_TOKENIZE_ALL = ("tokenize", RUN, "--images", "images/val", "--out", "codes")
_USES = (
    ("sample", "{model}", "--count", "1", "--classes", "1"),
    ("reconstruct", "{model}", "--count", "1", "--images", "images/val"),
    _TOKENIZE,
    ("export", "{model}", "--out", "exported"),
)
_EVALUATE = (
    "evaluate",
    RUN,
    "--images-per-class=1",
    "--seeds=0",
    "--classifier-steps=1",
    "--max-validation=2",
    "--cache=judges",
)
_SHARD = ("shard", "{folder}", "new", "--workers", "1", "--max-bad-share", "1")
_RESUME = ("train", "tiny.yaml", "stages.generator.steps=2")
_CORPUS_USES = (
    ("verify", "corpus/train"),
    ("verify", "corpus/train", "--decode"),
    ("repair", "corpus/train", "--workers", "1"),
    ("stats", "corpus/train", "--html", "page.html"),
    ("preview", "corpus/train", "--out", "sheet.png"),
    ("shard", "images", "corpus", "--workers", "1", "--shard-samples", "20"),
    ("shard", "images", "new", "--workers", "1", "--without-duplicates-of", "corpus"),
    ("train", "tiny.yaml", "run.name=other", "--dry-run"),
    ("teacher", "corpus/train", "--out", "new.safetensors", "--steps", "1", "--batch", "2"),
)


class Target(NamedTuple):
    """Files, by a pattern in the tree, and the commands that read them."""

    pattern: str
    uses: tuple[tuple[str, ...], ...]


def _of_model(model: str, *uses: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.format(model=model) for word in use) for use in (*_USES, *uses))


TARGETS = (
    Target(f"{RUN}/*.yaml", (*_of_model(RUN), ("report", RUN), _RESUME, _EVALUATE)),
    Target(f"{RUN}/*.json", (*_of_model(RUN), ("report", RUN), _RESUME, _EVALUATE)),
    Target(f"{RUN}/*.jsonl", (("report", RUN), _RESUME)),
    Target(f"{RUN}/grids/*", (("report", RUN),)),
    Target(
        f"{RUN}/weights/*",
        (*_of_model(RUN), _EVALUATE, ("train", "tiny.yaml", "run.name=o", "--init-from", RUN)),
    ),
    Target(f"{RUN}/checkpoints/**/*", (("export", "{checkpoint}", "--out", "exported"), _RESUME)),
    Target(
        "model/*",
        _of_model(
            "model", ("train", "tiny.yaml", "run.name=o", "--init-from", "model", "--dry-run")
        ),
    ),
    Target("imported/*.json", _of_model("imported")),
    Target("corpus/train/manifest/**/*", _CORPUS_USES),
    Target("corpus/train/shards/*", _CORPUS_USES),
    Target("public/*.pt", (("import", "{file}", "--out", "imported-again"),)),
    Target("model/*.safetensors", (("import", "{file}", "--out", "imported-again"),)),
    Target("pairs/*", (_SHARD,)),
    Target("stock/*", (_SHARD,)),
    Target("urls/*", ((*_SHARD, "--kind", "urls", "--attempts", "1"),)),
    Target("images/val/circle_solid/*", (_SHARD, _TOKENIZE_ALL)),
    Target("labels.txt", ((*_SHARD[:1], "pairs", *_SHARD[2:], "--classes", "labels.txt"),)),
    Target("judges/*", (_EVALUATE,)),
    Target("tiny.yaml", (("plan", "tiny.yaml"), ("train", "tiny.yaml", "--dry-run"))),
    Target("teacher.safetensors", (("train", "tiny.yaml", "run.name=other", "--dry-run"),)),
)


def file_cases(tree: Path, draw: random.Random, *, training: bool = False) -> Iterator[Case]:
    """Damaged files without end: the targets in turns, everything else drawn.

    Args:
        training: whether the command is one that trains, which takes seconds.
    """
    files = {t: sorted(p for p in tree.glob(t.pattern) if p.is_file()) for t in TARGETS}
    others = [path for found in files.values() for path in found]
    assert all(files.values()), [t.pattern for t, found in files.items() if not found]
    checkpoint = max((tree / RUN / "checkpoints").glob("step-*")).relative_to(tree).as_posix()
    while True:
        for target in TARGETS:
            uses = [use for use in target.uses if trains(use) == training]
            if not uses:
                continue
            path = draw.choice(files[target]).relative_to(tree)
            use = draw.choice(uses)
            places = {"file": path, "folder": path.parts[0], "checkpoint": checkpoint}
            argv = (word.format(**places) for word in use)
            other = draw.choice(others).relative_to(tree)
            yield Case(tuple(argv), _Damage(path, other, draw.randrange(2**32)))


class _Damage(NamedTuple):
    path: Path
    other: Path
    """A file that may take its place."""
    seed: int

    def __call__(self, folder: Path) -> str:
        """Damage the file in a folder. Returns: how."""
        draw = random.Random(self.seed)
        file = folder / self.path
        data = file.read_bytes()
        kinds: list[Callable[[bytes, random.Random], bytes]] = [*BYTE_DAMAGES]
        if retype := RETYPED.get(file.suffix):
            kinds += [retype] * 2 * len(kinds)
        kind = draw.choice([*kinds, *PLACE_DAMAGES])
        file.unlink()
        if kind in PLACE_DAMAGES:
            kind(file, folder / self.other)
        else:
            file.write_bytes(kind(data, draw))
        return f"{self.path}: {kind.__name__}, seed {self.seed}"


# -- bytes ------------------------------------------------------------------------------------


def flip(data: bytes, draw: random.Random) -> bytes:
    """A few bytes become others, many of them where headers are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 4, 32)) if data else 0):
        end = len(data) if draw.random() < 0.5 else min(len(data), 512)
        changed[draw.randrange(end)] = draw.randrange(256)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return data[: draw.randrange(len(data) + 1)]


def cut_front(data: bytes, draw: random.Random) -> bytes:
    """The beginning is missing."""
    return data[draw.randrange(len(data) + 1) :]


def zero(data: bytes, draw: random.Random) -> bytes:
    """A block of zeros, as a disk leaves it after a crash."""
    start = draw.randrange(len(data) + 1)
    size = min(draw.choice((16, 512, 4096)), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


def extend(data: bytes, draw: random.Random) -> bytes:
    """More bytes after the end."""
    return data + draw.randbytes(draw.choice((1, 100)))


def empty(data: bytes, draw: random.Random) -> bytes:
    """No bytes."""
    return b""


def noise(data: bytes, draw: random.Random) -> bytes:
    """Other bytes, as many."""
    return draw.randbytes(min(len(data), 4096))


BYTE_DAMAGES = (flip, cut, cut_front, zero, extend, empty, noise)


def missing(file: Path, other: Path) -> None:
    """No file."""


def swapped(file: Path, other: Path) -> None:
    """Another of the tree's files."""
    if other.is_file():
        file.write_bytes(other.read_bytes())


def a_folder(file: Path, other: Path) -> None:
    """A folder of that name."""
    file.mkdir()


def a_loop(file: Path, other: Path) -> None:
    """A link to itself."""
    file.symlink_to(file.name)


PLACE_DAMAGES = (missing, swapped, a_folder, a_loop)

# -- values -----------------------------------------------------------------------------------


def retype(node: Any, draw: random.Random) -> Any:
    """A copy in which one to three values are others, missing, renamed, nested or doubled."""
    root = {"root": copy.deepcopy(node)}
    for _ in range(draw.choice((1, 1, 3))):
        holder, key = draw.choice(list(_places(root)))
        kind = draw.randrange(5)
        if kind == 0 and holder is not root:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict) and holder is not root:
            holder[draw.choice(("x", "", "step"))] = holder.pop(key)
        elif kind == 2:
            holder[key] = draw.choice(([], {}, [holder[key]], {"x": holder[key]}))
        else:
            holder[key] = draw.choice(ODD)
    return root["root"]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def retype_json(data: bytes, draw: random.Random) -> bytes:
    """Other values; a checksum of its own is made to fit, as another program might."""
    node = retype(json.loads(data), draw)
    if isinstance(node, dict) and "xxh3" in node and draw.random() < 0.7:
        node = _sealed(node)
    return json.dumps(node, indent=1, sort_keys=True).encode() + b"\n"


def _sealed(node: dict[str, Any]) -> dict[str, Any]:
    import xxhash

    bare = {key: value for key, value in node.items() if key != "xxh3"}
    text = json.dumps(bare, indent=1, sort_keys=True) + "\n"
    return {**bare, "xxh3": xxhash.xxh3_128_hexdigest(text.encode())}


def retype_lines(data: bytes, draw: random.Random) -> bytes:
    """One line of several has other values."""
    lines = data.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = json.dumps(retype(json.loads(lines[number]), draw)).encode()
    return b"\n".join(lines) + b"\n"


def retype_yaml(data: bytes, draw: random.Random) -> bytes:
    """Other values, also of types that JSON has not."""
    import yaml

    return yaml.safe_dump(retype(yaml.safe_load(data), draw), allow_unicode=True).encode()


def retype_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Another header before the same tensors."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(retype(json.loads(data[8 : 8 + size]), draw)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def retype_pickle(data: bytes, draw: random.Random) -> bytes:
    """Other values and tensors in a checkpoint of plain containers."""
    import io

    import torch

    sink = io.BytesIO()
    torch.save(retype(torch.load(io.BytesIO(data), weights_only=True), draw), sink)
    return sink.getvalue()


def retype_table(data: bytes, draw: random.Random) -> bytes:
    """A column is missing, doubled, of another type or has other values; rows are missing."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    name = draw.choice(table.column_names)
    number = table.column_names.index(name)
    odd = draw.choice((None, -1, 10**12, 2.5, "x", "", True))
    kind = draw.randrange(4)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.append_column("another", table[name])
    elif kind == 2:
        table = table.slice(draw.randrange(len(table) + 1))
    else:
        values = [odd if draw.random() < 0.5 else None for _ in range(len(table))]
        column = pa.array(values)
        # Of the right type where it fits: then only the values are wrong.
        if draw.random() < 0.7:
            try:
                column = column.cast(table.schema.field(name).type)
            except pa.ArrowException:
                column = pa.array(values)
        table = table.set_column(number, name, column)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


RETYPED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": retype_json,
    ".jsonl": retype_lines,
    ".yaml": retype_yaml,
    ".safetensors": retype_safetensors,
    ".pt": retype_pickle,
    ".parquet": retype_table,
}
