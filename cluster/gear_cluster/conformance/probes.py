"""Probes of an object store: a few requests each, that show whether it can do one thing.

A probe returns what it saw, and raises `LackingError` where the store does something else. Errors
of boto3 pass through.
"""

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

from awscrt import checksums
from botocore import exceptions

from gear_dist.storage.s3_client import error_code

PART_BYTES = 5 << 20
"""The least that S3 takes for a part that is not the last."""
_TEXT = b"0123456789"
_REFUSED = {"BadDigest", "InvalidDigest", "InvalidRequest", "XAmzContentChecksumMismatch", "400"}


class LackingError(Exception):
    """The store does not do what a probe looks for; the message says what it does."""


class Scratch:
    """The objects of a check, below a prefix of their own."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = prefix
        self.keys: set[str] = set()
        """All that may be there, also where a listing does not tell."""

    def of(self, key: str) -> dict[str, str]:
        """The parameters that name an object."""
        self.keys.add(key)
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}"}

    def put(self, key: str, data: bytes = _TEXT, **options: Any) -> Any:
        """Write an object."""
        return self.client.put_object(**self.of(key), Body=data, **options)

    def head(self, key: str, **options: Any) -> Any:
        """Ask about an object."""
        return self.client.head_object(**self.of(key), **options)

    def read(self, key: str, **options: Any) -> bytes:
        """An object's bytes, or some of them."""
        return self.client.get_object(**self.of(key), **options)["Body"].read()

    def names(self, prefix: str, page: int = 1000) -> list[str]:
        """Keys below a prefix, in the order of the listing, `page` of them a request."""
        options = {"Bucket": self.bucket, "Prefix": f"{self.prefix}/{prefix}", "MaxKeys": page}
        found: list[str] = []
        for _ in range(100):
            answer = self.client.list_objects_v2(**options)
            found += [item["Key"].removeprefix(f"{self.prefix}/") for item in _contents(answer)]
            if not answer.get("IsTruncated"):
                return found
            options["ContinuationToken"] = answer["NextContinuationToken"]
        raise LackingError("a listing does not come to its end")

    def is_there(self, key: str) -> bool:
        """Whether an object is there, by the object itself."""
        try:
            self.head(key)
        except exceptions.ClientError as error:
            if error_code(error) not in ("404", "NoSuchKey", "NotFound"):
                raise
            return False
        return True


def _contents(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(answer.get("Contents", ()))


def _expect(seen: object, wanted: object, what: str) -> None:
    if seen != wanted:
        raise LackingError(f"{what}: {_short(seen)} in place of {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_and_read(scratch: Scratch) -> str:
    """Objects read back as they were written, at once."""
    scratch.put("object")
    _expect(scratch.read("object"), _TEXT, "reads back")
    _expect(scratch.head("object")["ContentLength"], len(_TEXT), "size")
    scratch.put("empty", b"")
    _expect(scratch.read("empty"), b"", "an empty object reads back")
    return "the bytes and the size, at once"


def overwrite(scratch: Scratch) -> str:
    """A second write replaces the first, at once."""
    scratch.put("twice", b"first")
    scratch.put("twice", b"second!")
    _expect(scratch.read("twice"), b"second!", "reads back")
    _expect(scratch.head("twice")["ContentLength"], 7, "size")
    return "the new bytes, at once"


def absence(scratch: Scratch) -> str:
    """What is not there is told as 404."""
    if scratch.is_there("never"):
        raise LackingError("an object that was never written is there")
    try:
        scratch.read("never")
    except exceptions.ClientError as error:
        _expect(error.response["ResponseMetadata"]["HTTPStatusCode"], 404, "status")
        return "404"
    raise LackingError("an object that was never written can be read")


def delete(scratch: Scratch) -> str:
    """A deleted object is gone, at once."""
    scratch.put("gone")
    scratch.client.delete_object(**scratch.of("gone"))
    if scratch.is_there("gone") or scratch.names("gone"):
        raise LackingError("a deleted object is still there")
    scratch.client.delete_object(**scratch.of("gone"))
    return "gone at once; once more is no error"


def ranges(scratch: Scratch) -> str:
    """Ranges within an object."""
    scratch.put("ranges")
    for start, end in ((0, 0), (2, 4), (9, 9)):
        found = scratch.read("ranges", Range=f"bytes={start}-{end}")
        _expect(found, _TEXT[start : end + 1], f"bytes {start} to {end}")
    return "exactly the bytes asked for"


def range_status(scratch: Scratch) -> str:
    """How a range is answered."""
    scratch.put("ranges")
    answer = scratch.client.get_object(**scratch.of("ranges"), Range="bytes=2-4")
    answer["Body"].read()
    _expect(answer.get("ContentRange"), f"bytes 2-4/{len(_TEXT)}", "Content-Range")
    _expect(answer["ResponseMetadata"]["HTTPStatusCode"], 206, "status")
    return "206 with Content-Range"


def suffix_ranges(scratch: Scratch) -> str:
    """The last bytes of an object."""
    scratch.put("ranges")
    _expect(scratch.read("ranges", Range="bytes=-3"), _TEXT[-3:], "the last 3 bytes")
    _expect(scratch.read("ranges", Range="bytes=-99"), _TEXT, "the last 99 bytes of 10")
    return "also those longer than the object"


# In the order of their UTF-8 bytes, which no locale and no tree of folders gives.
_NAMES = ["list/A", "list/a-b", "list/a.b", "list/a/b", "list/a0", "list/b", "list/é"]


def listing(scratch: Scratch) -> str:
    """Keys by prefix, right after they were written."""
    for name in reversed(_NAMES):
        scratch.put(name)
    _expect(sorted(scratch.names("list/")), sorted(_NAMES), "keys")
    _expect(scratch.names("list/a"), _NAMES[1:5], "keys that start with list/a")
    sizes = scratch.client.list_objects_v2(Bucket=scratch.bucket, Prefix=f"{scratch.prefix}/list/")
    _expect({item["Size"] for item in _contents(sizes)}, {len(_TEXT)}, "sizes")
    return "all keys with their sizes, at once; any prefix"


def order(scratch: Scratch) -> str:
    """Listings in the order of the keys' bytes."""
    for name in _NAMES:
        scratch.put(name)
    _expect(scratch.names("list/"), _NAMES, "order")
    return "by the bytes of the keys"


def pages(scratch: Scratch) -> str:
    """Listings in several requests."""
    for name in _NAMES:
        scratch.put(name)
    _expect(sorted(scratch.names("list/", page=3)), sorted(_NAMES), "keys, three a page")
    return "every key once"


def conditional_create(scratch: Scratch) -> str:
    """A write only where the name is free."""
    scratch.put("owner", b"first")
    try:
        scratch.put("owner", b"second", IfNoneMatch="*")
    except exceptions.ClientError as error:
        _expect(error.response["ResponseMetadata"]["HTTPStatusCode"], 412, "status")
        _expect(scratch.read("owner"), b"first", "after a refusal reads back")
        return "412 where the name is taken"
    raise LackingError("If-None-Match is ignored: the object was replaced")


def conditional_replace(scratch: Scratch) -> str:
    """A write only over a known version."""
    scratch.put("match")
    try:
        scratch.put("match", b"second", IfMatch='"00000000000000000000000000000000"')
    except exceptions.ClientError as error:
        _expect(error.response["ResponseMetadata"]["HTTPStatusCode"], 412, "status")
        return "412 where it has changed"
    raise LackingError("If-Match is ignored: the object was replaced")


@contextlib.contextmanager
def _upload(scratch: Scratch, key: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """A multipart upload of two parts, not completed; what is left of it is aborted."""
    created = scratch.client.create_multipart_upload(**scratch.of(key))
    upload = {**scratch.of(key), "UploadId": created["UploadId"]}
    try:
        parts = []
        for number, data in ((1, b"a" * PART_BYTES), (2, b"b")):
            answer = scratch.client.upload_part(**upload, PartNumber=number, Body=data)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        yield upload, parts
    finally:
        with contextlib.suppress(exceptions.ClientError):
            scratch.client.abort_multipart_upload(**upload)


def multipart(scratch: Scratch) -> str:
    """Large objects in parts."""
    with _upload(scratch, "parts/whole") as (upload, parts):
        scratch.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        _expect(scratch.head("parts/whole")["ContentLength"], PART_BYTES + 1, "size")
        found = scratch.read("parts/whole")
        if found != b"a" * PART_BYTES + b"b":
            raise LackingError("the parts joined are other bytes than were sent")
    return "parts joined in order"


def invisible_parts(scratch: Scratch) -> str:
    """An upload before it is completed."""
    with _upload(scratch, "parts/unfinished"):
        if scratch.is_there("parts/unfinished") or "parts/unfinished" in scratch.names("parts/"):
            raise LackingError("an upload that is not completed is visible")
    return "nothing until it is completed"


def abort(scratch: Scratch) -> str:
    """Unfinished uploads can be found and removed."""
    place = {"Bucket": scratch.bucket, "Prefix": f"{scratch.prefix}/abort/"}

    def listed() -> list[str]:
        answer = scratch.client.list_multipart_uploads(**place)
        return [item["UploadId"] for item in answer.get("Uploads", ())]

    with _upload(scratch, "abort/this") as (upload, _):
        _expect(listed(), [upload["UploadId"]], "unfinished uploads below a prefix")
        scratch.client.abort_multipart_upload(**upload)
        _expect(listed(), [], "after the abort, unfinished uploads")
    return "listed by prefix, and aborted"


def _refuses(scratch: Scratch, key: str, **options: Any) -> None:
    try:
        scratch.put(key, **options)
    except exceptions.ClientError as error:
        if error_code(error) not in _REFUSED:
            raise
        return
    raise LackingError("a wrong checksum is accepted")


def md5(scratch: Scratch) -> str:
    """Content-MD5 is compared with the bytes."""
    _refuses(scratch, "md5", ContentMD5=base64.b64encode(bytes(16)).decode())
    return "a wrong one is refused"


def crc64(scratch: Scratch) -> str:
    """The store computes and keeps the CRC-64/NVME of a whole object."""
    right = base64.b64encode(checksums.crc64nvme(_TEXT).to_bytes(8, "big")).decode()
    scratch.put("crc", ChecksumCRC64NVME=right)
    answer = scratch.head("crc", ChecksumMode="ENABLED")
    _expect(answer.get("ChecksumCRC64NVME"), right, "CRC-64/NVME")
    _refuses(scratch, "crc", ChecksumCRC64NVME=base64.b64encode(bytes(8)).decode())
    _expect(answer.get("ChecksumType"), "FULL_OBJECT", "type")
    return "computed, stored and returned; a wrong checksum is rejected"


def tags(scratch: Scratch) -> str:
    """Entity tags tell versions apart."""
    scratch.put("tag", b"first")
    first = scratch.head("tag").get("ETag", "").strip('"')
    scratch.put("tag", b"other")
    second = scratch.head("tag").get("ETag", "").strip('"')
    if not first or not second:
        raise LackingError("there is none")
    if first == second:
        raise LackingError("it stays the same when the object changes")
    return "another one after every change"


def times(scratch: Scratch) -> str:
    """Times by the store's clock."""
    scratch.put("time")
    answer = scratch.head("time")
    if "LastModified" not in answer or "date" not in answer["ResponseMetadata"]["HTTPHeaders"]:
        raise LackingError("the response has no Last-Modified or Date header")
    return "present, on the store's clock"


def folder_and_object(scratch: Scratch) -> str:
    """A key that is another's folder."""
    # In the other order some stores hide the object below, and then it cannot be removed.
    scratch.put("both")
    try:
        scratch.put("both/below")
    except exceptions.ClientError as error:
        raise LackingError(f"the second of the two is refused ({error_code(error)})") from None
    _expect(scratch.read("both"), _TEXT, "the object reads back")
    return "both are there"


def copies(scratch: Scratch) -> str:
    """Parts that are copied from another object."""
    scratch.put("from")
    source = scratch.of("from")
    created = scratch.client.create_multipart_upload(**scratch.of("copy"))
    upload = {**scratch.of("copy"), "UploadId": created["UploadId"]}
    try:
        answer = scratch.client.upload_part_copy(**upload, PartNumber=1, CopySource=source)
        part = {"PartNumber": 1, "ETag": answer.get("CopyPartResult", {}).get("ETag", "")}
        scratch.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [part]})
    finally:
        with contextlib.suppress(exceptions.ClientError):
            scratch.client.abort_multipart_upload(**upload)
    _expect(scratch.read("copy"), _TEXT, "reads back")
    return "a part may be copied from another object"


def object_tags(scratch: Scratch) -> str:
    """Labels of an object."""
    scratch.put("tagged")
    labels = {"TagSet": [{"Key": "a", "Value": "b"}]}
    scratch.client.put_object_tagging(**scratch.of("tagged"), Tagging=labels)
    _expect(scratch.read("tagged"), _TEXT, "with labels the object reads back")
    return "labels leave the object alone"
