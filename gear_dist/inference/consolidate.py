"""Converts a sharded checkpoint to whole weights files, for any number of parts.

On one machine, without engines, a tensor in memory at a time.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from gear_dist.checkpoints.layout import MANIFEST
from gear_dist.checkpoints.reader import CheckpointReader
from gear_dist.checkpoints.safetensors_writer import write_tensors
from gear_dist.config.loading import config_from_dict, to_dict
from gear_dist.config.schema import RunConfig
from gear_dist.errors import DataError
from gear_dist.inference.model_folder import ModelFolder
from gear_dist.inference.text_weights import METADATA_KEY
from gear_dist.inference.weights import metadata_texts, split_states
from gear_dist.storage.addresses import split_address
from gear_dist.storage.atomic import atomic_file
from gear_dist.storage.json_files import build_record
from gear_dist.storage.open import open_storage

Shapes = dict[str, dict[str, list[int]]]
Copy = Literal["ema", "live"]
LIVE_KINDS = ("weights", "frozen", "buffers")


@contextmanager
def consolidated(address: str, copy: Copy = "ema", endpoint: str = "") -> Iterator[ModelFolder]:
    """A checkpoint as a model folder, which is gone after the block.

    Args:
        address: the checkpoint's folder, local or s3://.
        copy: which weights of networks that have an average.
        endpoint: of S3.

    Raises:
        DataError: it is not a checkpoint, or damaged.
    """
    parent, folder = split_address(address)
    storage = open_storage(parent, endpoint)
    with (
        CheckpointReader(storage, folder) as reader,
        tempfile.TemporaryDirectory(prefix="gear-") as scratch,
    ):
        reader.verify(range(reader.manifest.world_size))
        config, shapes = _read_info(reader)
        metadata = {"config": to_dict(config), "step": reader.manifest.step}
        if encoder := reader.state.get(METADATA_KEY):
            metadata[METADATA_KEY] = encoder
        files = _write(reader, metadata, shapes, copy, Path(scratch))
        yield ModelFolder(Path(scratch), config, files)


class _NetworkFacts(NamedTuple):
    shapes: Shapes


def _read_info(reader: CheckpointReader) -> tuple[RunConfig, Shapes]:
    """The configuration, and the shapes of the tensors by network and name.

    Raises:
        DataError: the manifest has others than this version writes.
    """
    networks = reader.state.get("networks")
    try:
        shapes = networks.get("shapes") if isinstance(networks, dict) else None
        shapes = build_record(_NetworkFacts, {"shapes": shapes}).shapes
        if any(size < 0 for names in shapes.values() for shape in names.values() for size in shape):
            raise ValueError("a shape is negative")
        return config_from_dict(reader.state.get("config")), shapes
    except ValueError as error:
        raise DataError(f"{reader.folder}/{MANIFEST}: damaged: {error}") from None


def _write(
    reader: CheckpointReader, metadata: Mapping[str, Any], shapes: Shapes, copy: Copy, folder: Path
) -> dict[str, Path]:
    """Files of the published networks."""
    texts = metadata_texts(metadata)
    stored = {
        network: {name: _stored(reader, network, name, copy) for name in names}
        for network, names in shapes.items()
    }
    published_shapes = split_states(shapes)
    files = {}
    for network, keys in split_states(stored).items():
        tensors = {
            name: torch.empty(
                published_shapes[network][name], dtype=reader.dtype(key), device="meta"
            )
            for name, key in keys.items()
        }
        files[network] = path = folder / f"{network}.safetensors"
        with atomic_file(path) as stream:
            write_tensors(stream, tensors.items(), texts, _loader(reader, keys, tensors))
    return files


def _loader(
    reader: CheckpointReader, keys: dict[str, str], like: dict[str, torch.Tensor]
) -> Callable[[str], torch.Tensor]:
    def load(name: str) -> torch.Tensor:
        return reader.read(keys[name], like[name].shape, like[name].dtype)

    return load


def _stored(reader: CheckpointReader, network: str, name: str, copy: Copy) -> str:
    """The checkpoint's name of a network's tensor."""
    kinds = ("average", *LIVE_KINDS) if copy == "ema" else LIVE_KINDS
    for kind in kinds:
        if f"{network}.{kind}.{name}" in reader.keys():  # noqa: SIM118
            return f"{network}.{kind}.{name}"
    raise DataError(f"{reader.folder} lacks {network}.{name}")
