"""mosaicml-streaming as a peer of the loader: its corpus, its batches, its resume.

It lives in a folder of its own on PYTHONPATH: its requirements are not ours.
`python streaming_peer.py SOURCE FIRST_BATCH` prints the seconds to the first batch of a resume.
"""

import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

WORKERS = 2
SEED = 0


def _import_streaming() -> Any:
    """Without its dataset classes, which need torchvision."""
    for name in ("multimodal", "text", "vision"):
        sys.modules.setdefault(f"streaming.{name}", types.ModuleType(name))
    import streaming

    return streaming


def write_corpus(images: list[tuple[str, int]], folder: Path) -> None:
    """MDS shards of encoded images with their classes."""
    writer = _import_streaming().MDSWriter(columns={"jpg": "bytes", "cls": "int"}, out=str(folder))
    with writer:
        for path, label in images:
            writer.write({"jpg": Path(path).read_bytes(), "cls": label})


def batches(
    source: str, crop: Callable[[bytes], torch.Tensor], batch_size: int, *, first_batch: int = 0
) -> Iterator[Any]:
    """Shuffled batches without end; shards of a store go to a folder that is empty at first."""
    streaming = _import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    os.environ.setdefault("S3_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL", ""))

    class Crops(streaming.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            sample = super().__getitem__(index)
            return crop(sample["jpg"]), sample["cls"]

    with tempfile.TemporaryDirectory() as local:
        remote = source if "://" in source else None
        dataset = Crops(
            remote=remote,
            local=local if remote else source,
            shuffle=True,
            shuffle_seed=SEED,
            batch_size=batch_size,
            num_canonical_nodes=1,
        )
        if first_batch:
            dataset.load_state_dict(
                {
                    "epoch": 0,
                    "sample_in_epoch": first_batch * batch_size,
                    "num_canonical_nodes": 1,
                    "shuffle_seed": SEED,
                    "initial_physical_nodes": 1,
                }
            )
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size,
            num_workers=WORKERS,
            drop_last=True,
            worker_init_fn=lambda _: torch.set_num_threads(1),
        )
        while True:
            yield from loader


def main() -> None:
    """Measure a resume; what boto3 loads once is there already, as in our rounds."""
    import boto3
    from loader_peers import BATCH, turbo_crop

    _import_streaming()
    boto3.client("s3", region_name="us-east-1")
    start = time.perf_counter()
    found = batches(sys.argv[1], turbo_crop, BATCH, first_batch=int(sys.argv[2]))
    next(found)
    print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
