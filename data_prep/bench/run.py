"""Measures sharding beside its peers: `python data_prep/bench/run.py [copy strict ...]`.

All contenders are commands, run in turns on one machine; the median of the rounds counts, of the
work itself (imports not counted, starting processes is) and of the whole command. img2dataset comes
from a folder of its own, because its pins exclude ours: `pip install --target FOLDER img2dataset`,
then `--img2dataset FOLDER`; its work is counted from its own notes, in its favour.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from corpora import make_tree
from corruption import count_found, mutate_published, mutate_sources
from measure import Contender, Result, remove, run_in_turns

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SMALL, LARGE = (500, 375), (1360, 1020)


class Bench(NamedTuple):
    """What every measurement is given."""

    folder: Path
    rounds: int
    num_images: int
    img2dataset: str


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8000, help="of 500 x 375 pixels")
    parser.add_argument("--img2dataset", default="", metavar="FOLDER")
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--work", type=Path, help="where to work; default: a temporary folder")
    return parser.parse_args()


def ours(tree: Path, *options: str) -> Callable[[Path], list[str]]:
    """Our command."""
    words = [sys.executable, "-m", "gear_data_prep", "shard", str(tree)]
    fixed = ["--workers", "2", "--validation-share", "0", "--json"]
    return lambda out: [*words, str(out), *fixed, *options]


def peer(name: str, tree: Path, *options: str) -> Callable[[Path], list[str]]:
    """A peer's command."""
    words = [sys.executable, str(HERE / "peers.py"), name, str(tree)]
    return lambda out: [*words, str(out), *options]


def measure_copy(bench: Bench) -> Iterator[str]:
    """Raw copy with full integrity."""
    tree = make_tree(bench.folder / "small", bench.num_images, SMALL)
    contenders = [
        Contender("webdataset ShardWriter", peer("shard-writer", tree)),
        Contender("gear-dist, header check", ours(tree, "--check", "header")),
    ]
    yield from _table("raw copy, 500 x 375", bench, bench.num_images, contenders)


def measure_strict(bench: Bench) -> Iterator[str]:
    """Copy with a strict decode of every image."""
    tree = make_tree(bench.folder / "small", bench.num_images, SMALL)
    contenders = [Contender("gear-dist, strict check", ours(tree))]
    if bench.img2dataset:
        contenders.insert(0, Contender("img2dataset, decoding", peer("img2dataset", tree)))
    yield from _table("copy with decoding, 500 x 375", bench, bench.num_images, contenders)


def measure_resize(bench: Bench) -> Iterator[str]:
    """Resize pictures of the usual size to short side 256."""
    yield from _measure_resize(bench, SMALL, bench.num_images // 4)


def measure_resize_large(bench: Bench) -> Iterator[str]:
    """The same of large ones."""
    yield from _measure_resize(bench, LARGE, bench.num_images // 20)


def _measure_resize(bench: Bench, size: tuple[int, int], count: int) -> Iterator[str]:
    """All at quality 95 and 4:2:0, which is all that img2dataset has."""
    tree = make_tree(bench.folder / f"resize-{size[0]}", count, size, num_distinct=200)
    options = ("--check", "header", "--short-side", "256", "--quality", "95")
    options += ("--subsampling", "420")
    # Shards are what processes share out: a few large ones would leave one of them idle.
    options += ("--shard-samples", str(max(1, count // 16)))
    contenders = [
        Contender("PIL", peer("pil-resize", tree)),
        Contender("gear-dist, bicubic", ours(tree, *options)),
        Contender("gear-dist, area", ours(tree, *options, "--filter", "area")),
    ]
    if bench.img2dataset:
        words = peer("img2dataset", tree, "--mode", "keep_ratio")
        contenders.insert(1, Contender("img2dataset", words))
    title = f"resize to short side 256, {size[0]} x {size[1]}"
    yield from _table(title, bench, count, contenders)


def measure_upload(bench: Bench) -> Iterator[str]:
    """One file of 256 MiB to the embedded store."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    from gear_cluster.demo.object_store import ensure_running, stop
    from gear_dist.storage.open import open_storage
    from gear_dist.storage.s3_client import make_client
    from gear_dist.storage.s3_upload import LOOPBACK_THREADS, MULTIPART_BYTES, PART_BYTES

    store = ensure_running(bench.folder / "store")
    os.environ.update(store.environment())
    ours = TransferConfig(
        multipart_threshold=MULTIPART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=LOOPBACK_THREADS,
    )
    path = bench.folder / "blob"
    size = 256 << 20
    path.write_bytes(os.urandom(size))
    storage = open_storage("s3://gear-bench/upload")
    storage.write("first", b"")

    def send_by_boto3() -> None:
        client = boto3.client("s3", endpoint_url=store.endpoint, region_name="us-east-1")
        client.upload_file(str(path), "gear-bench", "peer")

    def send_as_we_do() -> None:
        make_client().upload_file(
            str(path), "gear-bench", "tuned", {"ChecksumAlgorithm": "CRC64NVME"}, Config=ours
        )

    contenders = {
        "boto3 upload_file": send_by_boto3,
        "boto3 upload_file, our client and settings": send_as_we_do,
        "gear-dist": lambda: storage.upload("ours", path),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for number in range(bench.rounds + 1):
            for name, send in contenders.items():
                start = time.monotonic()
                send()
                if number:
                    seconds[name].append(time.monotonic() - start)
    finally:
        stop(bench.folder / "store")
        path.unlink()
    yield "| upload of 256 MiB to the embedded store | MB/s |\n|---|---|"
    for name, times in seconds.items():
        yield f"| {name} | {size / 1e6 / statistics.median(times):.0f} |"


def measure_verify(bench: Bench) -> Iterator[str]:
    """A full verify, and a repair of two shards."""
    from gear_data_prep.corpus_tools.verify import VerifySettings, verify_corpus
    from gear_dist.storage.open import open_storage

    tree = make_tree(bench.folder / "small", bench.num_images, SMALL)
    target = bench.folder / "verified"
    remove(target)
    _run_quietly(ours(tree, "--check", "header")(target))
    storage = open_storage(str(target / "train"))
    rates = []
    for _ in range(bench.rounds + 1):
        found = verify_corpus(storage, VerifySettings())
        assert not found.faults
        rates.append(found.num_bytes / found.seconds / 1e6)
    start = time.monotonic()
    for path in sorted((target / "train/shards").iterdir())[:2]:
        path.unlink()
    _run_quietly([sys.executable, "-m", "gear_data_prep", "repair", str(target / "train")])
    took = time.monotonic() - start
    remove(target)
    yield "| verify | |\n|---|---|"
    yield f"| full verify, local, cached | {statistics.median(rates[1:]):.0f} MB/s |"
    shards = max(1, bench.num_images // 1000)
    yield f"| repair of 2 of {shards} shards, two verifies included | {took:.1f} s |"


def _run_quietly(words: list[str]) -> None:
    import subprocess

    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def _table(title: str, bench: Bench, count: int, contenders: list[Contender]) -> Iterator[str]:
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", "")]),
        "IMG2DATASET": bench.img2dataset,
    }
    results = run_in_turns(contenders, bench.rounds, bench.folder, environment)
    yield f"| {title} | images/s | of the first | whole command | of the first | peak MB |"
    yield "|---|---|---|---|---|---|"
    for result in results:
        yield _row(result, results[0], count)


def _row(result: Result, first: Result, count: int) -> str:
    work = f"{count / result.work_s:,.0f} | {first.work_s / result.work_s:.2f}"
    whole = f"{count / result.whole_s:,.0f} | {first.whole_s / result.whole_s:.2f}"
    return f"| {result.name} | {work} | {whole} | {result.peak_bytes / 1e6:.0f} |"


def measure_corruption(_: Bench) -> Iterator[str]:
    """Corrupt images found, of 200 each."""
    yield "| corrupt images found, of 200 | cut | zeroed | garbled | harmless ones refused |"
    yield "|---|---|---|---|---|"
    for name, counts in count_found(200).items():
        yield f"| {name} | {' | '.join(str(count) for count in counts)} |"


PARTS = {
    "copy": measure_copy,
    "strict": measure_strict,
    "resize": measure_resize,
    "resize-large": measure_resize_large,
    "upload": measure_upload,
    "verify": measure_verify,
    "corruption": measure_corruption,
    "mutations": None,
}


def describe() -> str:
    """Where and with what."""
    names = ("webdataset", "pillow", "simplejpeg", "opencv-python-headless", "boto3", "pyarrow")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, {packages}. Command: "
        f"`python data_prep/bench/run.py {' '.join(sys.argv[1:])}`"
    )


def main() -> int:
    """Measure and print tables."""
    args = parse_arguments()
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        bench = Bench(Path(folder), args.rounds, args.images, args.img2dataset)
        for name in args.parts or PARTS:
            print(flush=True)
            if name == "mutations":
                lines = [*mutate_published(bench.folder, args.mutations)]
                lines += mutate_sources(bench.folder, args.mutations)
            else:
                lines = PARTS[name](bench)
            for line in lines:
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
