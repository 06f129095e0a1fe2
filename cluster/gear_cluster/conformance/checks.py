"""`gear-dist store check`: what an object store does of that which this project asks of it."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from botocore import exceptions

from gear_cluster.conformance import probes as probes
from gear_cluster.conformance.probes import LackingError, Scratch
from gear_dist.errors import ConfigError
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3 import S3Storage
from gear_dist.storage.s3_client import ABSENT, NO_BUCKET, UNREACHABLE, error_code, make_client

Need = Literal["required", "used", "not relied upon"]


class Finding(NamedTuple):
    """What one probe has found."""

    name: str
    need: Need
    ok: bool
    seen: str
    meaning: str
    """What it means where it is not ok."""


Probe = Callable[[Scratch], str]
_CAPABILITIES: tuple[tuple[str, Need, Probe, str], ...] = (
    (
        "write and read",
        "required",
        probes.write_and_read,
        "nothing works on this store",
    ),
    (
        "overwrite",
        "required",
        probes.overwrite,
        "status and pointers stay old: runs resume wrongly",
    ),
    (
        "absent objects",
        "required",
        probes.absence,
        "missing objects cannot be distinguished from failed requests",
    ),
    (
        "delete",
        "required",
        probes.delete,
        "old checkpoints stay, or deleted ones are found again",
    ),
    (
        "ranged reads",
        "required",
        probes.ranges,
        "first batches and indexes of tars read wrong bytes",
    ),
    (
        "listing",
        "required",
        probes.listing,
        "shards and checkpoints are missed",
    ),
    (
        "listing in order",
        "required",
        probes.order,
        "the same source gives other shards elsewhere",
    ),
    (
        "listing in pages",
        "required",
        probes.pages,
        "of more than 1,000 objects some are overlooked",
    ),
    (
        "multipart upload",
        "required",
        probes.multipart,
        "objects of more than 16 MiB cannot be written",
    ),
    (
        "unfinished uploads are invisible",
        "required",
        probes.invisible_parts,
        "a killed write leaves half a shard under its final name",
    ),
    (
        "conditional create",
        "used",
        probes.conditional_create,
        "two commands started simultaneously on one address can both believe that they own it: "
        "start one at a time",
    ),
    (
        "abort and list uploads",
        "used",
        probes.abort,
        "parts of killed writes stay and cost space",
    ),
    (
        "Content-MD5",
        "used",
        probes.md5,
        "corruption during upload is detected only when the object is read",
    ),
    (
        "CRC-64/NVME of the whole object",
        "used",
        probes.crc64,
        "a shard that is already there is read again instead of compared by its checksum",
    ),
    (
        "entity tags",
        "used",
        probes.tags,
        "indexes of tars are kept by size and time of change instead",
    ),
    (
        "time of change",
        "used",
        probes.times,
        "without entity tags, tars are indexed again at every start",
    ),
    (
        "status 206",
        "not relied upon",
        probes.range_status,
        "readers other than ours may refuse ranges",
    ),
    (
        "suffix ranges",
        "not relied upon",
        probes.suffix_ranges,
        "some readers of parquet fail",
    ),
    (
        "conditional replace",
        "not relied upon",
        probes.conditional_replace,
        "table formats can lose writes",
    ),
    (
        "copies in parts",
        "not relied upon",
        probes.copies,
        "copy large objects by reading and writing",
    ),
    (
        "object labels",
        "not relied upon",
        probes.object_tags,
        "do not set any on this store",
    ),
    (
        "object beside a folder of its name",
        "not relied upon",
        probes.folder_and_object,
        "do not write an object whose name others use as a folder",
    ),
)


def check_store(address: str, endpoint: str = "") -> list[Finding]:
    """Try every capability below a scratch prefix of an address, which is removed afterwards.

    A bucket that is absent is made, and removed again.

    Raises:
        ConfigError: the address is not of an object store.
        DataError: the store does not answer or refuses the credentials.
        StorageError: it refuses to make the bucket.
    """
    storage = open_storage(address, endpoint)
    if not isinstance(storage, S3Storage):
        raise ConfigError(
            f"{address}: is not an object store: use s3://BUCKET or s3://BUCKET/PREFIX"
        )
    next(storage.list(), None)  # unreachable or refused: the message of all commands
    prefix = f"{storage.prefix}/" if storage.prefix else ""
    name = f"gear-store-check-{secrets.token_hex(6)}"
    scratch = Scratch(make_client(endpoint), storage.bucket, f"{prefix}{name}")
    with _bucket(storage), _removed(scratch):
        return [_try(scratch, *one) for one in _CAPABILITIES]


def _try(scratch: Scratch, name: str, need: Need, probe: Probe, meaning: str) -> Finding:
    try:
        return Finding(name, need, True, probe(scratch), meaning)
    except LackingError as lack:
        return Finding(name, need, False, str(lack), meaning)
    except exceptions.ClientError as error:
        told = error_code(error) or "an error"
        return Finding(name, need, False, f"the store answers {told}", meaning)
    except (*UNREACHABLE, exceptions.BotoCoreError, KeyError) as error:
        return Finding(name, need, False, f"no valid answer ({type(error).__name__})", meaning)


@contextlib.contextmanager
def _bucket(storage: S3Storage) -> Iterator[None]:
    try:
        storage.client.head_bucket(Bucket=storage.bucket)
        made = False
    except exceptions.ClientError as error:
        made = error_code(error) in ABSENT | NO_BUCKET
        if made:
            storage.ensure_bucket()
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(exceptions.ClientError):
                storage.client.delete_bucket(Bucket=storage.bucket)


@contextlib.contextmanager
def _removed(scratch: Scratch) -> Iterator[None]:
    """Delete all that was written, whatever the store's listing tells."""
    try:
        yield
    finally:
        for key in sorted(scratch.keys):
            with contextlib.suppress(exceptions.ClientError, exceptions.BotoCoreError):
                scratch.client.delete_object(**scratch.of(key))
