"""Uploads of files to S3: one request for small ones, parallel parts for large ones.

Every part carries a checksum that the store verifies. What was published is compared with what was
sent where the store keeps a checksum of its own.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from botocore import exceptions

from gear_dist.s3_client import error_code, with_retries

MULTIPART_BYTES = 16 << 20
"""Larger objects go up in parts."""
PART_BYTES = 8 << 20
MAX_PARTS = 9_000
THREADS = 4
"""Parts at a time: memory is about THREADS * PART_BYTES."""


class Target(NamedTuple):
    """Where an object goes."""

    client: Callable[[], Any]
    """The present client: another one after `renew`."""
    renew: Callable[[], None]
    bucket: str
    name: str

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
    """Publish an object in one request, which carries its MD5."""
    digest = _md5(data)
    with_retries(
        lambda: target.client().put_object(**target.of, Body=data, ContentMD5=digest, **options),
        target.renew,
    )


def _upload_parts(target: Target, descriptor: int, size: int) -> None:
    created = with_retries(
        lambda: target.client().create_multipart_upload(**target.of), target.renew
    )
    upload = {**target.of, "UploadId": created["UploadId"]}
    part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
    try:
        with ThreadPoolExecutor(THREADS) as pool:
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


def _send_part(
    target: Target, upload: dict[str, Any], number: int, descriptor: int, start: int, length: int
) -> dict[str, Any]:
    data = os.pread(descriptor, length, start)
    digest = _md5(data)
    answer = with_retries(
        lambda: target.client().upload_part(
            **upload, PartNumber=number, Body=data, ContentMD5=digest
        ),
        target.renew,
    )
    return {"PartNumber": number, "ETag": answer["ETag"]}


def _complete(
    target: Target, upload: dict[str, Any], parts: list[dict[str, Any]], size: int
) -> None:
    """Publish; where the answer to a first try was lost, the object itself is the answer."""
    try:
        with_retries(
            lambda: target.client().complete_multipart_upload(
                **upload, MultipartUpload={"Parts": parts}
            ),
            target.renew,
        )
    except exceptions.ClientError as error:
        if error_code(error) != "NoSuchUpload":
            raise
        head = with_retries(lambda: target.client().head_object(**target.of), target.renew)
        if head["ContentLength"] != size:
            raise


def _abort(target: Target, upload: dict[str, Any]) -> None:
    """Best effort: what stays is removed by the next run's `remove_leftovers`."""
    try:
        target.client().abort_multipart_upload(**upload)
    except (exceptions.ClientError, exceptions.BotoCoreError):
        return


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
