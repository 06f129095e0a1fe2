"""Uploads of files to S3: one request for small ones, parallel parts for large ones.

Every request carries a checksum: MD5, which every store verifies; on loopback CRC-64/NVME, because
there MD5 would cost as much as all the rest. The CRC-64/NVME of a published object is compared with
what was sent, where the store keeps one.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from awscrt import checksums
from botocore import exceptions

from gear_dist.errors import StorageError
from gear_dist.storage.s3_client import error_code, with_retries

MULTIPART_BYTES = 16 << 20
"""Larger objects go up in parts."""
PART_BYTES = 16 << 20
MAX_PARTS = 9_000
THREADS = 8
"""Parts at a time: memory is about THREADS * PART_BYTES."""
LOOPBACK_THREADS = 2
"""More would take the processor from the store, which runs on the same machine."""


class Target(NamedTuple):
    """Where an object goes."""

    client: Callable[[], Any]
    """The present client: another one after `renew`."""
    renew: Callable[[], None]
    bucket: str
    name: str
    on_loopback: bool
    """No network is in between: CRC-64 will do, and MD5, at a tenth of its speed, is not sent."""

    @property
    def of(self) -> dict[str, str]:
        """The parameters that name the object."""
        return {"Bucket": self.bucket, "Key": self.name}


def upload_stream(target: Target, stream: BinaryIO) -> None:
    """Publish a file's bytes: whole, or not at all.

    Raises:
        botocore's errors, after retries.
    """
    size = stream.seek(0, os.SEEK_END)
    if size > MULTIPART_BYTES:
        stream.flush()
        _upload_parts(target, stream.fileno(), size)
        return
    stream.seek(0)
    put_bytes(target, stream.read())


def put_bytes(target: Target, data: bytes, **options: str) -> None:
    """Publish an object in one request, which carries its checksum."""
    checks = _checks(target, data)
    with_retries(
        lambda: target.client().put_object(**target.of, Body=data, **checks, **options),
        target.renew,
    )


def _upload_parts(target: Target, descriptor: int, size: int) -> None:
    created = with_retries(
        lambda: target.client().create_multipart_upload(**target.of), target.renew
    )
    upload = {**target.of, "UploadId": created["UploadId"]}
    part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
    try:
        with ThreadPoolExecutor(LOOPBACK_THREADS if target.on_loopback else THREADS) as pool:
            futures = [
                pool.submit(_send_part, target, upload, number, descriptor, start, part_bytes)
                for number, start in enumerate(range(0, size, part_bytes), 1)
            ]
            try:
                parts = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        _complete(target, upload, parts, size)
    except BaseException:
        _abort(target, upload)
        raise


class _Part(NamedTuple):
    number: int
    tag: str
    crc64: int
    bytes: int


def _send_part(
    target: Target, upload: dict[str, Any], number: int, descriptor: int, start: int, length: int
) -> _Part:
    data = os.pread(descriptor, length, start)
    checks = _checks(target, data)
    answer = with_retries(
        lambda: target.client().upload_part(**upload, PartNumber=number, Body=data, **checks),
        target.renew,
    )
    return _Part(number, answer["ETag"], checksums.crc64nvme(data), len(data))


def _complete(target: Target, upload: dict[str, Any], parts: list[_Part], size: int) -> None:
    """Publish, then compare the store's checksum with what was sent.

    The object itself is asked only where the answer to a first try was lost: some stores read all
    of it again to answer.
    """
    listed = [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
    try:
        answer = with_retries(
            lambda: target.client().complete_multipart_upload(
                **upload, MultipartUpload={"Parts": listed}
            ),
            target.renew,
        )
    except exceptions.ClientError as error:
        if error_code(error) != "NoSuchUpload":
            raise
        answer = with_retries(
            lambda: target.client().head_object(**target.of, ChecksumMode="ENABLED"), target.renew
        )
    known = full_checksum(answer)
    if answer.get("ContentLength", size) != size or known not in ("", _combine(parts)):
        target.client().delete_object(**target.of)
        raise StorageError(
            f"s3://{target.bucket}/{target.name}: the store's copy differs from what was uploaded "
            f"and was removed; run the same command again"
        )


def full_checksum(answer: dict[str, Any]) -> str:
    """The CRC-64/NVME of the whole object in an answer, hex; empty: the store keeps none."""
    found = answer.get("ChecksumCRC64NVME", "")
    # A composite checksum, of parts' checksums, has their number after a hyphen.
    return base64.b64decode(found).hex() if found and "-" not in found else ""


def _combine(parts: list[_Part]) -> str:
    value = 0
    for part in parts:
        value = checksums.combine_crc64nvme(value, part.crc64, part.bytes)
    return f"{value:016x}"


def _abort(target: Target, upload: dict[str, Any]) -> None:
    """Best effort: what stays is removed by the next run's `remove_leftovers`."""
    try:
        target.client().abort_multipart_upload(**upload)
    except (exceptions.ClientError, exceptions.BotoCoreError):
        return


def _checks(target: Target, data: bytes) -> dict[str, str]:
    """The checksum that goes with a request."""
    if target.on_loopback:
        crc64 = checksums.crc64nvme(data).to_bytes(8, "big")
        return {"ChecksumCRC64NVME": base64.b64encode(crc64).decode()}
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"ContentMD5": base64.b64encode(digest).decode()}
