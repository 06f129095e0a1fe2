"""Shard URLs for reading our corpora with the stock webdataset library, on S3 or disk:

import webdataset
from gear_dist.data.stock_webdataset import shard_urls
samples = webdataset.WebDataset(shard_urls("s3://bucket/corpus/train"), shardshuffle=False)
"""

import io
from functools import partial
from typing import Any, BinaryIO

from webdataset.gopen import gopen_schemes

from gear_dist.data.corpus import open_corpus
from gear_dist.errors import ConfigError
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from gear_dist.storage.ranged_file import RangedFile

_WINDOW_BYTES = 8 << 20
"""Of a tar that is asked for at a time: each such read is retried by itself."""


def shard_urls(address: str, endpoint: str = "") -> list[str]:
    """What `webdataset.WebDataset` takes: the tars of a corpus in their order.

    For s3:// it has webdataset open them through our client, see `register_s3`.

    Args:
        address: a corpus of `gear-dist shard`, or a folder or prefix of stock tars.
        endpoint: S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS itself.

    Raises:
        DataError: no finished corpus there, a damaged manifest or tar.
    """
    storage, manifest = open_corpus(address, endpoint)
    if not isinstance(storage, FileStorage):
        register_s3(endpoint)
        return [f"{storage.address}/{info.key}" for info in manifest.shards]
    return [str(storage.root / info.key) for info in manifest.shards]


def register_s3(endpoint: str = "") -> None:
    """Have webdataset open s3:// addresses through our client, in this process and its forks.

    That is with its retries, also of bodies that break off, and the credentials and endpoint that
    gear-dist uses. A DataLoader's workers that are spawned need it in their `worker_init_fn`.

    Args:
        endpoint: S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS itself.
    """
    gopen_schemes["s3"] = partial(_open, endpoint)


def _open(endpoint: str, url: str, mode: str = "rb", *_: Any, **__: Any) -> BinaryIO:
    """webdataset's opener: DataError where the object is missing or unreachable."""
    if mode != "rb":
        raise ConfigError(f"{url}: is opened for reading only: write with `gear-dist shard`")
    folder, _slash, name = url.rpartition("/")
    return io.BufferedReader(RangedFile(open_storage(folder, endpoint), name), _WINDOW_BYTES)
