"""Measures the loader beside its peers: `python data_prep/bench/loader_run.py FOLDER`.

Contenders take turns, each a process tree of its own; medians of the rounds are printed. FOLDER
keeps the corpora for the next time. mosaicml-streaming is imported from where PYTHONPATH says.
"""

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from corpora import make_tree
from loader_peers import BATCH, SIZE
from peers import list_images
from streaming_peer import write_corpus

from gear_cluster.demo.object_store import ensure_running, stop
from gear_data_prep.__main__ import main as data_prep
from gear_dist.config.data import DataConfig
from gear_dist.data.loader import ShardLoader, build_loader
from gear_dist.data.order import MixtureComponent, Order
from gear_dist.storage.open import open_storage

HERE = Path(__file__).parent
BUCKET = "s3://gear-bench"
TIMEOUT_S = 120
"""Of one contender's round, which takes a tenth of it."""
SCENARIOS = {
    "raw": [
        "ours-exact",
        "ours-fast",
        "webdataset-pil",
        "imagefolder-pil",
        "streaming-pil",
        "webdataset-turbo",
        "imagefolder-turbo",
        "streaming-turbo",
    ],
    "raw-s3": [
        "ours-exact",
        "ours-fast",
        "webdataset-pil",
        "streaming-pil",
        "webdataset-turbo",
        "streaming-turbo",
    ],
    "large": ["ours-exact", "ours-fast", "webdataset-pil", "webdataset-turbo", "streaming-turbo"],
    "large-s3": ["ours-exact", "ours-fast", "webdataset-turbo", "streaming-turbo"],
    "small": ["ours-exact", "webdataset-pil", "webdataset-turbo", "streaming-turbo"],
    "small-s3": ["ours-exact", "webdataset-turbo", "streaming-turbo"],
}
IMAGES = {
    "raw": 7680,
    "raw-s3": 7680,
    "large": 1280,
    "large-s3": 1280,
    "small": 15360,
    "small-s3": 15360,
}
"""About two epochs: a loader that reads a whole epoch ahead gains nothing by it."""


def make_corpora(folder: Path, num_images: int) -> None:
    """JPEGs of 500 x 375, twice as many of 341 x 256, a sixth of 1360 x 1020; in the store as well.

    Each is more than the loader keeps in memory.
    """
    for name, size, count, per_shard in (
        ("raw", (500, 375), num_images, 500),
        ("small", (341, SIZE), 2 * num_images, 500),
        ("large", (1360, 1020), num_images // 6, 80),
    ):
        tree = make_tree(folder / f"{name}-tree" / "train", count, size)
        shards = folder / name
        if not shards.exists():
            options = ["--shard-samples", str(per_shard), "--workers", "2"]
            assert data_prep(["shard", str(tree.parent), str(shards), *options]) == 0
        if not (folder / f"{name}-mds").exists():
            write_corpus(list_images(tree), folder / f"{name}-mds" / "train")
        for kind in (name, f"{name}-mds"):
            local, remote = (open_storage(f"{root}/{kind}/train") for root in (folder, BUCKET))
            for item in local.list():
                if not remote.exists(item.key):
                    remote.write(item.key, local.read(item.key))


def source_of(folder: Path, scenario: str, contender: str) -> str:
    """Where a contender of a scenario reads."""
    name, _, remote = scenario.partition("-")
    suffix = {"imagefolder": "-tree", "streaming": "-mds"}.get(contender.partition("-")[0], "")
    return f"{BUCKET if remote else folder}/{name}{suffix}/train"


def run_scenario(folder: Path, scenario: str, rounds: int) -> None:
    """All contenders in turns."""
    found: dict[str, list[float]] = {name: [] for name in SCENARIOS[scenario]}
    for _ in range(rounds):
        for contender, speeds in found.items():
            source = source_of(folder, scenario, contender)
            images = str(IMAGES[scenario])
            try:
                speeds.append(float(_run("loader_peers.py", contender, source, "--images", images)))
            except RuntimeError as error:
                if contender.startswith("ours"):
                    raise
                print(f"{contender} failed: {str(error).splitlines()[-1]}", file=sys.stderr)
    for contender, speeds in found.items():
        spread = " to ".join(f"{edge(speeds):,.0f}" for edge in (min, max)) if speeds else "failed"
        median = statistics.median(speeds or [math.nan])
        print(f"| {scenario} | {contender} | {median:,.0f} | {spread} |", flush=True)


def _run(program: str, *arguments: str) -> str:
    """The last word that a program of this folder prints.

    Raises:
        RuntimeError: it failed, or it hangs.
    """
    command = [sys.executable, str(HERE / program), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end in {TIMEOUT_S} s") from None
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.split()[-1]


def open_loader(source: str) -> ShardLoader:
    """One rank with the whole batch."""
    config = DataConfig(image_size=SIZE, decode_threads=2)
    share = {"rank": 0, "world_size": 1, "batch_size": BATCH}
    return build_loader(config, source, seed=0, num_classes=1000, **share)


def measure_resume(source: str, rounds: int) -> None:
    """From the address of the corpus to the first batch in the middle of an epoch."""
    loader = open_loader(source)
    state = {**loader.state_dict(), "step": loader.batches_per_epoch // 2}
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        loader = open_loader(source)
        loader.load_state_dict(state)
        batches = iter(loader)
        next(batches)
        seconds.append(time.perf_counter() - start)
        loader.close()  # which waits for what is being fetched
    _tell_resume("ours", source, seconds)


def measure_streaming_resume(source: str, rounds: int) -> None:
    """The same of mosaicml-streaming."""
    seconds = []
    for _ in range(rounds):
        seconds.append(float(_run("streaming_peer.py", source, "28")))
    _tell_resume("streaming", source, seconds)


def _tell_resume(name: str, source: str, seconds: list[float]) -> None:
    shown = ", ".join(f"{value:.2f}" for value in seconds)
    median = statistics.median(seconds)
    print(f"| first batch after resume, {name}, {source} | {median:.2f} s | {shown} |", flush=True)


def measure_plan() -> None:
    """A rank's first samples of epoch 3 from a corpus of a hundred million, 1,000 a shard."""
    tracemalloc.start()
    start = time.perf_counter()
    order = Order(
        [MixtureComponent(np.full(100_000, 1000), 0, 64)],
        global_batch=4096,
        seed=0,
        window_shards=1,
    )
    for places in order.places(5, 8):
        next(order.windows(places, 90_000))
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"| plan for 100,000,000 samples | {seconds:.3f} s | {peak / 1e6:.1f} MB |")


def measure_shuffle() -> None:
    """Rank correlation with the source and classes a batch, against a true permutation.

    128 shards of 500 samples in 100 classes that every shard mixes; batches of 256; 20 seeds.
    """
    counts, random = np.full(128, 500), np.random.default_rng(0)
    total, batch = int(counts.sum()), 256
    classes = random.integers(0, 100, total)
    steps = total // batch
    for lanes, window_shards in ((0, 0), (1, 8), (8, 1), (64, 1)):
        rows = []
        for seed in range(20):
            if lanes:
                part = MixtureComponent(counts, 0, lanes)
                numbers = _epoch(
                    Order([part], global_batch=batch, seed=seed, window_shards=window_shards),
                    steps,
                )
            else:
                numbers = random.permutation(total)[: steps * batch]
            rows.append(_quality(numbers.reshape(steps, batch), classes))
        name = f"{lanes} lanes, window {window_shards}" if lanes else "true permutation"
        correlation, mixing, near = np.abs(np.array(rows)).mean(axis=0)
        print(f"| {name} | {correlation:.3f} | {mixing:.2f} | {near:.4f} |")


def _epoch(order: Order, steps: int) -> np.ndarray:
    (places, *more) = order.places(0, 1)
    lanes = []
    for place in (places, *more):
        windows, rows = order.windows(place, 0), np.zeros(0, np.int64)
        while len(rows) < steps * order.per_lane:
            window = next(windows)
            rows = np.concatenate([rows, window.shards * 500 + window.rows])
        lanes.append(rows[: steps * order.per_lane].reshape(steps, order.per_lane))
    return np.concatenate(lanes, axis=1).ravel()


def _quality(numbers: np.ndarray, classes: np.ndarray) -> tuple[float, float, float]:
    flat = numbers.ravel()
    correlation = np.corrcoef(np.arange(flat.size), flat)[0, 1]
    mixing = np.mean([len(np.unique(classes[row])) for row in numbers])
    same_shard = np.mean([1 - len(np.unique(row // 500)) / len(row) for row in numbers])
    return float(correlation), float(mixing), float(same_shard)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    choices = (*SCENARIOS, "resume", "plan", "shuffle")
    parser.add_argument("folder", type=Path, help="for the corpora, about 5 GB")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.rounds} rounds")
    if "plan" in args.only:
        measure_plan()
    if "shuffle" in args.only:
        measure_shuffle()
    store = ensure_running(args.folder / "store")
    os.environ.update(store.environment())
    try:
        make_corpora(args.folder, args.images)
        for scenario in [name for name in SCENARIOS if name in args.only]:
            run_scenario(args.folder, scenario, args.rounds)
        if "resume" in args.only:
            for root in (args.folder, BUCKET):
                measure_resume(f"{root}/raw/train", args.rounds)
                measure_streaming_resume(f"{root}/raw-mds/train", args.rounds)
    finally:
        stop(args.folder / "store")


if __name__ == "__main__":
    main()
