"""The images of a corpus, whatever holds them: shards, tars, or files in folders, here or on S3.

They stream: a batch is decoded while the one before is used, and of shards the next is fetched.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gear_dist.config.colour import parse_colour
from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import Corpus, open_corpus
from gear_dist.data.crops import CropSettings, Placement, take_crop
from gear_dist.data.images import BadImageError
from gear_dist.data.manifest import DATASET_KEY, ShardInfo
from gear_dist.data.read_ahead import ReadAhead
from gear_dist.data.shard_reader import Shard, UnreadableSampleError, read_shard
from gear_dist.data.tar_samples import IMAGE_SUFFIXES
from gear_dist.errors import DataError
from gear_dist.inference.image_files import LeftOut
from gear_dist.runs.environment import num_cores
from gear_dist.storage.file_kinds import is_hidden
from gear_dist.storage.open import open_storage

_BATCHES_AHEAD = 1
_READERS = 16


class NamedImages(NamedTuple):
    """A batch."""

    names: list[str]
    """Where each is, below the corpus's address."""
    pixels: Tensor
    """uint8 (N, 3, H, W): centre crops of the short side's size."""


class _Item(NamedTuple):
    name: str
    read: Callable[[], bytes]
    """The encoded image; may raise UnreadableSampleError."""


class ImageSource:
    """Images at one address, in the order of their names there.

    Attributes:
        address: as the user gave it.
        storage: behind it.
        total: images, those included that turn out to be bad.
    """

    def __init__(
        self,
        address: str,
        data: DataConfig,
        *,
        option: str,
        endpoint: str = "",
        max_bad_share: float = 0.0,
    ) -> None:
        """Look what is there; nothing is decoded yet.

        Args:
            address: see `open_storage`.
            data: size of the images, and how they are decoded.
            option: what the address was given for, for messages.
            endpoint: of S3.
            max_bad_share: largest share of images that cannot be decoded and are left out.

        Raises:
            DataError: no images there.
        """
        self.address = address
        self.storage = open_storage(address, endpoint)
        self._option = option
        self._crops = CropSettings(
            data.image_size, data.max_pixels, background=parse_colour(data.background)
        )
        self._keys: list[str] = []
        self._corpus: Corpus | None = None
        if self.storage.exists(DATASET_KEY) or not self._find_files():
            self._corpus = open_corpus(address, endpoint)
        corpus = self._corpus
        self.total = len(self._keys) if corpus is None else corpus.manifest.info.num_samples
        if not self.total:
            raise DataError(f"{option} {address}: it has no images")
        self._max_bad_share = max_bad_share

    def _find_files(self) -> bool:
        """Whether image files are there, and no tars; DataError where there is neither."""
        tars = False
        for item in self.storage.list():
            if any(map(is_hidden, item.key.split("/"))):
                continue
            tars = tars or item.key.endswith(".tar")
            if item.key.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
                self._keys.append(item.key)
        if not tars and not self._keys:
            raise DataError(
                f"{self._option} {self.address}: no images there: neither a corpus of `gear-dist "
                f"shard`, nor tars, nor image files ({', '.join(IMAGE_SUFFIXES)})"
            )
        return not tars

    def batches(self, size: int, most: int | None = None) -> Iterator[NamedImages]:
        """Batches of at most so many images; memory holds three of them, and two shards.

        Args:
            size: images a batch.
            most: images in all; None: every one.

        Raises:
            DataError: something cannot be read, too many images are bad, or all are.
        """
        found, left_out = 0, LeftOut(self.total, self._max_bad_share)
        reader = ReadAhead(self._decoded(size, most, left_out), _BATCHES_AHEAD)
        try:
            for batch in reader:
                found += len(batch.names)
                yield batch
        finally:
            reader.close()
        left_out.summarise()
        if not found:
            raise DataError(f"{self._option} {self.address}: not one image could be decoded")

    def _decoded(
        self, size: int, most: int | None, left_out: LeftOut
    ) -> Generator[NamedImages, None, None]:
        items, left = self._items(), self.total if most is None else most
        with ThreadPoolExecutor(min(_READERS, 4 * num_cores())) as pool:
            while left and (part := list(islice(items, min(size, left)))):
                done = list(pool.map(self._decode, part))
                for item, pixels in zip(part, done, strict=True):
                    if isinstance(pixels, str):
                        left_out.add(f"{self.storage.address}/{item.name}: {pixels}")
                good = [
                    (item.name, pixels)
                    for item, pixels in zip(part, done, strict=True)
                    if not isinstance(pixels, str)
                ]
                left -= len(good)
                if good:
                    stacked = np.stack([pixels for _, pixels in good])
                    images = torch.from_numpy(stacked).permute(0, 3, 1, 2)
                    yield NamedImages([name for name, _ in good], images.contiguous())

    def _decode(self, item: _Item) -> np.ndarray | str:
        """(H, W, 3), or what is wrong with it."""
        try:
            return take_crop(item.read(), self._crops, Placement())
        except (BadImageError, UnreadableSampleError) as error:
            return str(error)

    def _items(self) -> Iterator[_Item]:
        if self._corpus is None:
            yield from (_Item(key, partial(self.storage.read, key)) for key in self._keys)
            return
        for info, shard in _shards(self._corpus):
            for row, key in enumerate(shard.keys):
                yield _Item(f"{info.key}:{key}", partial(shard.image, row))


def _shards(corpus: Corpus) -> Iterator[tuple[ShardInfo, Shard]]:
    """Shards in order, the next one fetched meanwhile."""
    storage, infos = corpus.storage, corpus.manifest.shards
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read_shard, storage, infos[0])
        for place, info in enumerate(infos):
            shard = following.result()
            if place + 1 < len(infos):
                following = pool.submit(read_shard, storage, infos[place + 1])
            yield info, shard
