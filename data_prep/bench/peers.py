"""What others do, as commands: `python peers.py PEER ...`, two processes each."""

import argparse
import io
import json
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path

PROCESSES = 2


def tell_seconds(start: float) -> None:
    """Print how long the work took, imports not counted, where `measure` looks for it."""
    print(json.dumps({"seconds": time.monotonic() - start}))


def list_images(tree: Path) -> list[tuple[str, int]]:
    """Path and class of every image, shuffled as our plan would."""
    import random

    classes = sorted(path.name for path in tree.iterdir())
    images = [
        (str(path), number)
        for number, name in enumerate(classes)
        for path in sorted((tree / name).iterdir())
    ]
    random.Random(0).shuffle(images)
    return images


def _in_processes(work, images: list, target: Path) -> None:
    target.mkdir(parents=True)
    parts = [images[i::PROCESSES] for i in range(PROCESSES)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        pool.starmap(partial(work, target), list(enumerate(parts)), chunksize=1)


def _write_shards(target: Path, process: int, images: list[tuple[str, int]]) -> None:
    import webdataset

    pattern = str(target / f"{process}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=1000, maxsize=256 << 20, verbose=0) as sink:
        for path, label in images:
            data = Path(path).read_bytes()
            sink.write({"__key__": Path(path).stem, "jpg": data, "cls": str(label)})


def _resize_with_pil(target: Path, process: int, images: list[tuple[str, int]]) -> None:
    """PIL's decode, bicubic and encode at the same quality, written by webdataset."""
    import webdataset
    from PIL import Image

    pattern = str(target / f"{process}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=1000, verbose=0) as sink:
        for path, label in images:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            short = min(image.size)
            size = tuple(max(256, 256 * side // short) for side in image.size)
            stream = io.BytesIO()
            small = image.resize(size, Image.Resampling.BICUBIC)
            small.save(stream, "JPEG", quality=95, subsampling=2)
            sample = {"__key__": Path(path).stem, "jpg": stream.getvalue(), "cls": str(label)}
            sink.write(sample)


def _img2dataset(tree: Path, target: Path, mode: str, size: int) -> None:
    # Its pins exclude ours, so it lives in a folder of its own: ahead of our packages, but behind
    # Python's, of which it brings an outdated one.
    ours = next(i for i, entry in enumerate(sys.path) if entry.endswith("site-packages"))
    sys.path.insert(ours, os.environ["IMG2DATASET"])
    import pandas
    from img2dataset import download

    table = target.with_suffix(".parquet")
    urls = [f"file://{path}" for path, _ in list_images(tree)]
    pandas.DataFrame({"url": urls}).to_parquet(table)
    download(
        url_list=str(table),
        input_format="parquet",
        output_folder=str(target),
        output_format="webdataset",
        resize_mode=mode,
        image_size=size,
        resize_only_if_bigger=True,
        encode_quality=95,
        processes_count=PROCESSES,
        thread_count=4,
        number_sample_per_shard=1000,
        enable_wandb=False,
        # Without it nothing is decoded.
        min_image_size=1,
    )
    # Its processes import for many seconds; its own notes leave that out, in its favour.
    notes = [json.loads(path.read_text()) for path in target.glob("*_stats.json")]
    first, last = min(n["start_time"] for n in notes), max(n["end_time"] for n in notes)
    assert sum(n["successes"] for n in notes) == len(urls), notes
    print(json.dumps({"seconds": last - first}))
    table.unlink()


def main() -> int:
    """Run one peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("shard-writer", "pil-resize", "img2dataset"))
    parser.add_argument("tree", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mode", default="no")
    args = parser.parse_args()
    if args.peer == "img2dataset":
        _img2dataset(args.tree, args.target, args.mode, 256)
        return 0
    work = {"shard-writer": _write_shards, "pil-resize": _resize_with_pil}[args.peer]
    start = time.monotonic()
    _in_processes(work, list_images(args.tree), args.target)
    tell_seconds(start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
