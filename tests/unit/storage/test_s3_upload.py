"""Multipart uploads: whole or not at all, whatever the store answers."""

import io
import os
import tempfile
from collections import Counter
from typing import Any

import pytest
from awscrt import checksums
from botocore.exceptions import ClientError

from gear_dist.errors import StorageError
from gear_dist.storage import s3_client, s3_upload
from gear_dist.storage.s3_upload import Target, upload_stream
from refusals import refused

PART = 1 << 20


class FakeStore:
    """The calls of a multipart upload, with faults by operation."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.faults: dict[str, list[Exception]] = {}
        self.calls: Counter[str] = Counter()
        self.object: bytes | None = None
        self.checksum = ""

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def create_multipart_upload(self, **_: Any) -> dict[str, str]:
        self._call("create")
        return {"UploadId": "u"}

    def upload_part(self, *, PartNumber: int, Body: bytes, **checks: str) -> dict[str, str]:
        self._call("part")
        assert set(checks) >= {"ContentMD5"} or set(checks) >= {"ChecksumCRC64NVME"}
        self.parts[PartNumber] = Body
        return {"ETag": f"tag{PartNumber}"}

    def complete_multipart_upload(self, *, MultipartUpload: Any, **_: Any) -> dict[str, str]:
        order = [part["PartNumber"] for part in MultipartUpload["Parts"]]
        self.object = b"".join(self.parts[number] for number in order)
        self._call("complete")
        return {"ChecksumCRC64NVME": self.checksum}

    def abort_multipart_upload(self, **_: Any) -> None:
        self._call("abort")

    def delete_object(self, **_: Any) -> None:
        self.object = None

    def head_object(self, **_: Any) -> dict[str, Any]:
        assert self.object is not None
        return {"ContentLength": len(self.object), "ChecksumCRC64NVME": self.checksum}


def error(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "op")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART)
    monkeypatch.setattr(s3_client, "_MAX_WAIT_S", 0.001)


def send(store: FakeStore, size: int = 17 * PART + 5) -> bytes:
    data = os.urandom(size)
    target = Target(lambda: store, lambda: None, "b", "k", False)
    with tempfile.TemporaryFile() as stream:
        stream.write(data)
        upload_stream(target, stream)
    return data


def test_parts_arrive_in_order_and_faults_pass() -> None:
    store = FakeStore()
    store.faults = {
        "part": [error("SlowDown", 503), error("InternalError", 500)],
        "complete": [error("InternalError", 500)],
    }
    assert send(store) == store.object
    assert (store.calls["part"], store.calls["complete"], store.calls["abort"]) == (20, 2, 0)


def test_a_lost_answer_to_complete() -> None:
    store = FakeStore()
    store.faults = {"complete": [error("RequestTimeout", 408), error("NoSuchUpload", 404)]}
    assert send(store) == store.object


def test_a_refused_part_leaves_nothing() -> None:
    store = FakeStore()
    store.faults = {"part": [error("AccessDenied", 403)]}
    with pytest.raises(ClientError):
        send(store)
    assert (store.object, store.calls["abort"], store.calls["complete"]) == (None, 1, 0)


def test_an_object_that_differs_is_removed() -> None:
    store = FakeStore()
    store.checksum = "AAAAAAAAAAA="
    with refused(StorageError, "s3://b/k", "removed"):
        send(store)
    assert store.object is None


def test_checksums_of_parts_combine_to_that_of_the_whole() -> None:
    data = os.urandom(3 * PART + 7)
    pieces = [data[i : i + PART] for i in range(0, len(data), PART)]
    parts = [s3_upload._Part(1, "", checksums.crc64nvme(p), len(p)) for p in pieces]
    assert s3_upload._combine(parts) == f"{checksums.crc64nvme(data):016x}"


def test_expired_credentials_are_read_anew() -> None:
    renewed = []
    faults = [error("ExpiredToken", 400), error("ExpiredToken", 400)]

    def attempt() -> str:
        if faults:
            raise faults.pop()
        return "done"

    assert s3_client.with_retries(attempt, lambda: renewed.append(1)) == "done"
    assert len(renewed) == 2


def test_small_files_go_in_one_request() -> None:
    bodies = []

    class Store:
        def put_object(self, *, Body: bytes, **_: Any) -> None:
            bodies.append(Body)

    upload_stream(Target(Store, lambda: None, "b", "k", True), io.BytesIO(b"abc"))
    assert bodies == [b"abc"]
