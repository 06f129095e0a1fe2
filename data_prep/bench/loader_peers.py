"""Loaders that are measured: each yields batches of uint8 crops from two processes.

`python loader_peers.py CONTENDER SOURCE` prints images/s of the whole machine, once warm.
"""

import argparse
import io
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROCESSES = 2
BATCH = 64
SIZE = 256
WARM_BATCHES = 8


def pil_crop(data: bytes) -> torch.Tensor:
    """What most loaders do: PIL's decode and bicubic resize, a random crop and flip."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    if short != SIZE:
        target = (max(SIZE, SIZE * width // short), max(SIZE, SIZE * height // short))
        image = image.resize(target, Image.Resampling.BICUBIC)
    return _place(np.asarray(image))


def turbo_crop(data: bytes) -> torch.Tensor:
    """The faster habit: libjpeg-turbo's decode and OpenCV's area resize."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    pixels = simplejpeg.decode_jpeg(data)
    height, width = pixels.shape[:2]
    short = min(width, height)
    if short != SIZE:
        target = (max(SIZE, SIZE * width // short), max(SIZE, SIZE * height // short))
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    return _place(pixels)


def _place(pixels: np.ndarray) -> torch.Tensor:
    height, width = pixels.shape[:2]
    x, y = random.randint(0, width - SIZE), random.randint(0, height - SIZE)
    taken = pixels[y : y + SIZE, x : x + SIZE]
    taken = taken[:, ::-1] if random.random() < 0.5 else taken
    return torch.from_numpy(np.ascontiguousarray(taken.transpose(2, 0, 1)))


CROPS = {"pil": pil_crop, "turbo": turbo_crop}


class ImageFolder(torch.utils.data.Dataset):
    """CLASS/NAME.jpg files, as torchvision's class of that name reads them."""

    def __init__(self, root: str, crop: str) -> None:
        classes = sorted(path.name for path in Path(root).iterdir())
        self._files = [
            (str(path), label)
            for label, name in enumerate(classes)
            for path in sorted(Path(root, name).iterdir())
        ]
        self._crop = CROPS[crop]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self._files[index]
        return self._crop(Path(path).read_bytes()), label


def image_folder_batches(root: str, crop: str) -> Iterator[Any]:
    """torch's DataLoader over an ImageFolder."""
    loader = torch.utils.data.DataLoader(
        ImageFolder(root, crop),
        BATCH,
        shuffle=True,
        num_workers=PROCESSES,
        drop_last=True,
        worker_init_fn=_one_thread,
    )
    while True:
        yield from loader


def webdataset_batches(source: str, crop: str) -> Iterator[Any]:
    """Stock webdataset with its shuffle buffer; `source` is a folder or an s3:// address."""
    import webdataset

    dataset = (
        webdataset.WebDataset(
            _shard_urls(source), resampled=True, shardshuffle=False, handler=_raise
        )
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(CROPS[crop], int)
        .batched(BATCH, partial=False)
    )
    yield from webdataset.WebLoader(
        dataset, batch_size=None, num_workers=PROCESSES, worker_init_fn=_one_thread
    )


def _raise(error: Exception) -> bool:
    raise error


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _shard_urls(source: str) -> list[str]:
    import boto3
    from botocore.config import Config

    from gear_dist.data.manifest import load_manifest
    from gear_dist.storage.local import FileStorage
    from gear_dist.storage.open import open_storage
    from gear_dist.storage.s3 import S3Storage

    storage = open_storage(source)
    keys = [shard.key for shard in load_manifest(storage).shards]
    if isinstance(storage, FileStorage):
        return [str(storage.root / key) for key in keys]
    assert isinstance(storage, S3Storage)
    prefix = f"{storage.prefix}/" if storage.prefix else ""
    signer = boto3.client("s3", config=Config(signature_version="s3v4"))
    signed = (
        signer.generate_presigned_url(
            "get_object", Params={"Bucket": storage.bucket, "Key": prefix + key}
        )
        for key in keys
    )
    return [f"pipe:curl -sfL '{url}'" for url in signed]


def streaming_batches(source: str, crop: str) -> Iterator[Any]:
    """mosaicml-streaming's own dataset."""
    from streaming_peer import batches

    return batches(source, CROPS[crop], BATCH)


def our_batches(source: str, decoding: str, rank: int) -> Iterator[Any]:
    """This project's loader, one rank of two."""
    from gear_dist.config.data import DataConfig
    from gear_dist.data.loader import build_loader

    config = DataConfig(image_size=SIZE, decode_threads=1, decoding=decoding)  # type: ignore[arg-type]
    share = {"rank": rank, "world_size": PROCESSES, "batch_size": BATCH}
    yield from build_loader(config, source, seed=0, num_classes=1000, **share)


def _time(batches: Iterator[Any], count: int, start_together: Any = None) -> float:
    """Seconds of `count` batches after the warm ones."""
    for _ in range(WARM_BATCHES):
        next(batches)
    if start_together is not None:
        start_together.wait()
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - start


def _rank(rank: int, source: str, decoding: str, count: int, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    batches = our_batches(source, decoding, rank)
    results.put(_time(batches, count, barrier))
    batches.close()  # type: ignore[attr-defined]


def measure_ours(source: str, decoding: str, images: int) -> float:
    """Images/s of two ranks, each a process, as in training."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    count = images // BATCH // PROCESSES
    ranks = [
        context.Process(target=_rank, args=(rank, source, decoding, count, barrier, results))
        for rank in range(PROCESSES)
    ]
    for process in ranks:
        process.start()
    slowest = max(results.get(timeout=300) for _ in ranks)
    for process in ranks:
        process.join()
    return count * BATCH * PROCESSES / slowest


def measure_peer(kind: str, source: str, crop: str, images: int) -> float:
    """Images/s of one process with two workers."""
    make = {
        "webdataset": webdataset_batches,
        "imagefolder": image_folder_batches,
        "streaming": streaming_batches,
    }[kind]
    count = images // BATCH
    return count * BATCH / _time(make(source, crop), count)


def main() -> None:
    """Measure one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", help="such as ours-exact, webdataset-pil, imagefolder-turbo")
    parser.add_argument("source")
    parser.add_argument("--images", type=int, default=2560)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kind, _, variant = args.contender.partition("-")
    if kind == "ours":
        print(measure_ours(args.source, variant, args.images))
    else:
        print(measure_peer(kind, args.source, variant, args.images))


if __name__ == "__main__":
    main()
