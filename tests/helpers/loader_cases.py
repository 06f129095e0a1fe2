"""What tests of the loader share: loaders of given settings, corpora of given bytes."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from PIL import Image

from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import open_corpus
from gear_dist.data.loader import Batch, DataRank, ShardLoader
from gear_dist.data.manifest import (
    SAMPLES_SCHEMA,
    SCHEMA_VERSION,
    SHARDS_KEY,
    SHARDS_SCHEMA,
    DatasetInfo,
    ShardInfo,
    dump_info,
    dump_table,
    group_parts,
    samples_key,
)
from gear_dist.data.shard_reader import index_samples
from gear_dist.storage.checksums import crc64nvme_hex
from gear_dist.storage.local import FileStorage

SMALL = DataConfig(image_size=32, shuffle_buffer_shards=2, decode_threads=1, caption_dropout=0.0)


def make_loader(
    *addresses: str,
    batch_size: int = 16,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    seed: int = 0,
    num_classes: int = 16,
    pin_memory: bool = False,
    **data: Any,
) -> ShardLoader:
    return ShardLoader(
        [open_corpus(address) for address in addresses],
        replace(SMALL, **data),
        data_rank=DataRank(batch_size, rank, world_size, accumulation),
        seed=seed,
        num_classes=num_classes,
        pin_memory=pin_memory,
    )


def take(loader: ShardLoader, count: int) -> list[Batch]:
    batches = iter(loader)
    found = [next(batches) for _ in range(count)]
    loader.close()
    return found


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.keys == b.keys
        and a.captions == b.captions
        and torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.cfg_dropout_rand, b.cfg_dropout_rand)
        for a, b in zip(first, second, strict=True)
    )


def all_keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def tar_of(members: dict[str, bytes]) -> bytes:
    """A plain tar of named members."""
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def write_corpus(root: Path, shards: list[list[dict[str, bytes]]], classes: int = 2) -> str:
    """A corpus of given samples (member bytes by suffix), with no check of anything."""
    storage = FileStorage(root)
    infos, rows, number = [], [], 0
    for shard, samples in enumerate(shards):
        members = {}
        for parts in samples:
            members |= {f"{number:08d}.{suffix}": data for suffix, data in parts.items()}
            number += 1
        name, data = f"{shard:06d}.tar", tar_of(members)
        storage.write(f"shards/{name}", data)
        infos.append(ShardInfo(shard, name, len(samples), len(data), crc64nvme_hex(data)))
        rows.append(list(sample_rows(shard, data)))
    tables = {SHARDS_KEY: pa.Table.from_pylist([info._asdict() for info in infos], SHARDS_SCHEMA)}
    for part, group in enumerate(group_parts(infos)):
        listed = [row for info in group for row in rows[info.shard]]
        tables[samples_key(part)] = pa.Table.from_pylist(listed, SAMPLES_SCHEMA)
    for key, table in tables.items():
        storage.write(key, dump_table(table))
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        num_samples=number,
        num_shards=len(shards),
        classes=tuple("abcdefgh"[:classes]),
        attributes={},
        source="",
        settings={},
        plan_hash=f"plan of {root.name}",
        tool_version="0",
        checksums={key: xxhash.xxh3_128_hexdigest(storage.read(key)) for key in tables},
    )
    storage.write("manifest/dataset.json", dump_info(info))
    return storage.address


def sample_rows(number: int, data: bytes) -> Iterator[dict[str, Any]]:
    """A shard's rows of the samples table; width and height are left out."""
    shard = index_samples(data)
    for row, (key, parts) in enumerate(zip(shard.keys, shard.parts, strict=True)):
        image, label = shard.image(row), data[slice(*_ends(parts.get("cls", (0, 0))))]
        yield {
            "key": key,
            # A shard that is spoiled later had a class when it was made.
            "class_index": (int(label) if label.isdigit() else 0) if "cls" in parts else -1,
            "width": 0,
            "height": 0,
            "bytes": len(image),
            "xxh3": xxhash.xxh3_128_hexdigest(image),
            "shard": number,
            "offset": parts["png" if "png" in parts else "jpg"][0],
            "num_captions": len(shard.captions(row)),
            "caption_chars": sum(map(len, shard.captions(row))),
        }


def _ends(span: tuple[int, int]) -> tuple[int, int]:
    return span[0], span[0] + span[1]


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def flat_image(value: int, side: int = 32) -> bytes:
    """An image of one grey, which tells the sample."""
    return encode(np.full((side, side, 3), value, np.uint8))


def numbered_samples(count: int, *, first: int = 0, classes: int = 2) -> list[dict[str, bytes]]:
    """Samples whose grey is their number, with a class."""
    return [
        {"png": flat_image(number % 256), "cls": str(number % classes).encode()}
        for number in range(first, first + count)
    ]
