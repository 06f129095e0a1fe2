"""What damage is found: in images, in published corpora, in sources."""

import io
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from corpora import encode_picture, make_tree
from measure import remove
from PIL import Image

from gear_data_prep.corpus_tools.verify import VerifySettings, verify_corpus
from gear_data_prep.images.checks import ImageSettings, check_image
from gear_data_prep.sharding.destination import clear
from gear_data_prep.sharding.pipeline import CorpusSettings, make_corpus
from gear_data_prep.sharding.plan import PlanSettings
from gear_data_prep.sources import make_spec, open_source
from gear_data_prep.sources.files import SourceOptions
from gear_dist.errors import UserError
from gear_dist.storage.open import open_storage

STALL_SECONDS = 30
_STRICT = ImageSettings(read_codes=True)


def count_found(number: int) -> dict[str, list[int]]:
    """Damaged images found by each check: cut in half, 4 KiB zeroed, 16 bytes garbled, whole."""
    rng = random.Random(0)
    found = {name: [0, 0, 0, 0] for name in _CHECKS}
    for seed in range(number):
        data = encode_picture(seed, (500, 375))
        start = rng.randrange(1000, len(data) - 5000)
        garbled = data[:start] + rng.randbytes(16) + data[start + 16 :]
        zeroed = data[:start] + bytes(4096) + data[start + 4096 :]
        for kind, image in enumerate((data[: len(data) // 2], zeroed, garbled, data)):
            for name, check in _CHECKS.items():
                found[name][kind] += not check(image)
    return found


def _accepts(check: Callable[[bytes], object]) -> Callable[[bytes], bool]:
    def accepts(data: bytes) -> bool:
        try:
            return check(data) is not None
        except Exception:
            return False

    return accepts


def _opencv(data: bytes) -> object:
    import cv2

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


_CHECKS = {
    "PIL load": _accepts(lambda data: Image.open(io.BytesIO(data)).convert("RGB")),
    "OpenCV": _accepts(_opencv),
    "gear-dist, strict": _accepts(lambda data: check_image(data, "jpg", _STRICT)),
    "gear-dist, strict, no C compiler": _accepts(
        lambda data: check_image(data, "jpg", ImageSettings())
    ),
}


def mutate_published(folder: Path, number: int) -> Iterator[str]:
    """Change one byte of a published corpus at a time; a full verify has to find each."""
    tree = make_tree(folder / "tiny", 60, (64, 48))
    out = folder / "published"
    remove(out)
    _shard("folder", tree, out, PlanSettings(shard_samples=10), 0.0)
    storage = open_storage(str(out / "train"))
    objects = [item for item in storage.list() if item.bytes]
    rng = random.Random(0)
    missed = []
    for _ in range(number):
        item = rng.choices(objects, [i.bytes for i in objects])[0]
        path = out / "train" / item.key
        data = bytearray(path.read_bytes())
        position = rng.randrange(len(data))
        before = data[position]
        data[position] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        if not verify_corpus(storage, VerifySettings()).faults:
            missed.append(f"{item.key}:{position}")
        data[position] = before
        path.write_bytes(data)
    remove(out)
    yield f"published objects: {number - len(missed)} of {number} changed bytes found {missed[:5]}"


def mutate_sources(folder: Path, number: int) -> Iterator[str]:
    """Change bytes of a source at a time, then shard it: never a crash or a stall."""
    sources = _make_sources(folder)
    rng = random.Random(1)
    counts: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    for turn in range(number):
        kind, path, data, option = sources[turn % len(sources)]
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if rng.random() < 0.2:
            changed = changed[: rng.randrange(len(changed))]
        path.write_bytes(changed)
        start = time.monotonic()
        counts[kind, _outcome(kind, option, folder / "mutated")] += 1
        slowest = max(slowest, time.monotonic() - start)
        path.write_bytes(data)
    yield "| mutated source | refused | samples left out | nothing found | crashed or stalled |"
    yield "|---|---|---|---|---|"
    for kind in sorted({kind for kind, _ in counts}):
        row = [counts[kind, name] for name in ("refused", "left out", "passed", "crashed")]
        yield f"| {kind} | {' | '.join(map(str, row))} |"
    yield f"\n{number} mutations; the slowest took {slowest:.2f} s."


def _outcome(kind: str, source: Path, out: Path) -> str:
    def stalled(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stalled)
    signal.alarm(STALL_SECONDS)
    try:
        num_bad = _shard(kind, source, out, PlanSettings(image=_STRICT), 0.0)
        return "left out" if num_bad else "passed"
    except UserError:
        return "refused"
    except Exception as error:
        print(f"{kind}: {type(error).__name__}: {error}", flush=True)
        return "crashed"
    finally:
        signal.alarm(0)
        remove(out)


def _shard(kind: str, source: Path, out: Path, plan: PlanSettings, share: float) -> int:
    spec = make_spec(str(source), kind, SourceOptions(validation_share=share))
    opened = open_source(spec)
    settings = CorpusSettings(plan, max_bad_share=1.0)
    target = open_storage(str(out / "train"))
    clear(target)
    return make_corpus(target, opened, "train", settings, spec=spec).num_bad


def _make_sources(folder: Path) -> list[tuple[str, Path, bytes, Path]]:
    """Kind, the file to change, its bytes, and the source: of every kind, of every format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gear_dist.data.tar_writer import TarWriter

    found = []
    images = {"jpg": encode_picture(0, (64, 48))}
    with Image.open(io.BytesIO(images["jpg"])) as image:
        for suffix, name in (("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("gif", "GIF")):
            stream = io.BytesIO()
            image.save(stream, name)
            images[suffix] = stream.getvalue()
    for suffix, data in images.items():
        path = folder / f"mutant-{suffix}/a/1.{suffix}"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        (path.parent / f"2.{suffix}").write_bytes(data)
        found.append(("folder", path, data, path.parents[1]))
    tar = io.BytesIO()
    writer = TarWriter(tar)
    for number, (suffix, data) in enumerate(images.items()):
        writer.add(f"{number}.{suffix}", data)
        writer.add(f"{number}.json", b'{"caption": "a picture"}')
    writer.finish()
    outer = io.BytesIO()
    writer = TarWriter(outer)
    writer.add("n01.tar", tar.getvalue())
    writer.finish()
    rows = pa.table({"image": list(images.values()), "caption": list("abcde")})
    parquet = io.BytesIO()
    pq.write_table(rows, parquet)
    for kind, name, data in (
        ("webdataset", "0.tar", tar.getvalue()),
        ("imagenet", "0.tar", outer.getvalue()),
        ("parquet", "0.parquet", parquet.getvalue()),
    ):
        path = folder / f"mutant-{kind}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        found.append((kind, path, data, path.parent))
    return found
