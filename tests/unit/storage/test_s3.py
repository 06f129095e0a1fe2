"""s3:// storage against a real server, and its errors in terms of the settings to mend."""

import base64
import http.server
import pickle
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.storage import s3_upload
from gear_dist.storage.base import MissingObjectError, ObjectInfo, Storage
from gear_dist.storage.checksums import checksum_of
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3 import S3Storage
from refusals import refused

pytestmark = pytest.mark.usefixtures("object_store")


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    return open_storage(f"s3://gear-tests-storage/{request.node.name}")


def test_round_trip(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/b.bin", b"0123456789")
    with storage.writer("a/c.bin") as stream:
        stream.write(b"xy")
    (tmp_path / "local").write_bytes(b"local file")
    storage.upload("d.bin", tmp_path / "local")
    storage.download("a/c.bin", tmp_path / "elsewhere/c.bin")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("d.bin") == b"local file"
    assert storage.read_range("a/b.bin", 3, 4) == b"3456"
    assert (tmp_path / "elsewhere/c.bin").read_bytes() == b"xy"
    assert list(storage.list()) == [
        ObjectInfo("a/b.bin", 10),
        ObjectInfo("a/c.bin", 2),
        ObjectInfo("d.bin", 10),
    ]
    assert [item.key for item in storage.list("a/b")] == ["a/b.bin"]
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert not storage.exists("a/b.bin")
    assert storage.size("a/c.bin") == 2
    assert pickle.loads(pickle.dumps(storage)).read("d.bin") == b"local file"


def test_bucket_is_made_on_demand(object_store: StoreEndpoint) -> None:
    storage = open_storage("s3://gear-tests-new-bucket/x")
    assert not storage.exists("k")
    assert list(storage.list()) == []
    with refused(
        MissingObjectError, f"{storage.address}/k", "bucket", "data.endpoint", "AWS_ENDPOINT_URL"
    ):
        storage.read("k")
    storage.write("k", b"1")
    assert storage.read("k") == b"1"


def test_create_takes_a_name_once(storage: Storage) -> None:
    assert storage.create("k", b"first")
    assert not storage.create("k", b"second")
    assert storage.read("k") == b"first"


class _ConditionalHandler(http.server.BaseHTTPRequestHandler):
    """A store that honours If-None-Match, or one that knows nothing of it."""

    answer: int
    seen: list[str | None]

    def do_HEAD(self) -> None:
        self._reply(404)

    def do_PUT(self) -> None:
        self.seen.append(self.headers.get("If-None-Match"))
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(self.answer if self.headers.get("If-None-Match") else 200)

    def _reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "created", "seen"),
    [(412, False, ["*"]), (501, True, ["*", None]), (200, True, ["*"])],
)
def test_create_where_another_was_first(answer: int, created: bool, seen: list[str | None]) -> None:
    handler = type("Handler", (_ConditionalHandler,), {"answer": answer, "seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        storage = S3Storage("s3://bucket/x", f"http://127.0.0.1:{server.server_port}")
        assert storage.create("k", b"data") is created
        assert handler.seen == seen
        server.shutdown()
        thread.join()


def test_leftovers_of_a_killed_upload_are_removed(storage: S3Storage) -> None:
    storage.write("whole", b"x")
    for number in range(3):
        storage.client.create_multipart_upload(**storage._of(f"part{number}"))
    other = open_storage(f"s3://{storage.bucket}/elsewhere")
    other.client.create_multipart_upload(Bucket=storage.bucket, Key="elsewhere/part")
    assert storage.remove_leftovers() == 3
    assert storage.remove_leftovers() == 0
    assert other.remove_leftovers() == 1, "only those below the prefix"


def test_multipart(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
    data = bytes(range(256)) * (17 << 12)
    with storage.writer("big") as stream:
        stream.write(data)
    assert storage.read("big") == data
    monkeypatch.undo()
    storage.write("big", data[:-1])
    assert storage.read("big") == data[:-1]


def test_ranges_of_objects_with_a_stored_checksum(
    storage: Storage, object_store: StoreEndpoint
) -> None:
    """The server answers a range with the whole object's checksum; botocore's default chokes."""
    client = boto3.client("s3", endpoint_url=object_store.endpoint, region_name="us-east-1")
    storage.write("k", b"")
    name = f"{storage.address.partition('gear-tests-storage/')[2]}/k"
    client.put_object(
        Bucket="gear-tests-storage", Key=name, Body=b"0123456789", ChecksumAlgorithm="CRC32"
    )
    assert storage.read_range("k", 2, 3) == b"234"


def write_half(storage: Storage) -> None:
    with storage.writer("k") as stream:
        stream.write(b"new but unfinished")
        raise KeyboardInterrupt


def test_failed_writer_publishes_nothing(storage: Storage) -> None:
    storage.write("k", b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(storage)
    assert storage.read("k") == b"old"


def test_missing_object(storage: Storage) -> None:
    storage.write("k", b"abc")
    for read in (storage.read, storage.size):
        with refused(MissingObjectError, f"{storage.address}/none"):
            read("none")
    with refused(DataError, f"{storage.address}/k", "bytes=1-3"):
        storage.read_range("k", 1, 3)
    with refused(DataError, f"{storage.address}/k", "InvalidRange"):
        storage.read_range("k", 10, 3)


def test_wrong_credentials(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-one")
    for attempt in (storage.read, storage.exists, storage.delete, lambda k: storage.write(k, b"")):
        with refused(
            DataError, f"{storage.address}/k", "refuses", "AWS_SECRET_ACCESS_KEY"
        ) as caught:
            attempt("k")
        assert "not-the-one" not in str(caught.value)
    with refused(DataError, storage.address, "refuses", "AWS_ACCESS_KEY_ID"):
        list(storage.list())


def test_no_credentials(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with refused(DataError, f"{storage.address}/k", "no credentials", "AWS_ACCESS_KEY_ID"):
        storage.read("k")


@pytest.mark.timeout(120)  # its own limits are a few seconds a request
def test_no_store_there() -> None:
    storage = open_storage("s3://bucket/x", "http://127.0.0.1:9")
    needles = ("http://127.0.0.1:9", "data.endpoint", "gear-dist store start")
    for attempt in (storage.read, storage.exists, lambda k: storage.write(k, b"")):
        with refused(DataError, "s3://bucket/x/k", *needles):
            attempt("k")
    with refused(DataError, "s3://bucket/x", *needles):
        list(storage.list())


def test_endpoint_that_is_no_url() -> None:
    with refused(ConfigError, "data.endpoint='nonsense'", "AWS_ENDPOINT_URL"):
        open_storage("s3://bucket/x", "nonsense").read("k")


@pytest.mark.parametrize("bucket", ["b", "Bad_Name!"])
def test_impossible_bucket_name(bucket: str) -> None:
    with refused(ConfigError, f"s3://{bucket}/x", "bucket"):
        open_storage(f"s3://{bucket}/x").write("k", b"")


def test_full_local_disk(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with refused(StorageError, "TMPDIR"), storage.writer("k"):
        pass
    assert not storage.exists("k")


class _FaultyHandler(http.server.BaseHTTPRequestHandler):
    """Breaks bodies off, or refuses, for the first few requests."""

    faults: list[str]

    def do_GET(self) -> None:
        fault = self.faults.pop(0) if self.faults else "none"
        self.send_response(500 if fault == "error" else 200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"01234" if fault == "cut" else b"0123456789")

    def do_PUT(self) -> None:
        self.send_response(507)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[tuple[S3Storage, type[_FaultyHandler]]]:
    handler = type("Handler", (_FaultyHandler,), {"faults": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield S3Storage("s3://bucket/x", f"http://127.0.0.1:{server.server_port}"), handler
        server.shutdown()
        thread.join()


def test_broken_bodies_are_read_again(
    faulty: tuple[S3Storage, type[_FaultyHandler]], tmp_path: Path
) -> None:
    storage, handler = faulty
    handler.faults[:] = ["cut", "error", "cut"]
    assert storage.read("k") == b"0123456789"
    handler.faults[:] = ["cut"]
    storage.download("k", tmp_path / "k")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("k", b"0123456789")]


def test_bodies_that_stay_broken(
    faulty: tuple[S3Storage, type[_FaultyHandler]], tmp_path: Path
) -> None:
    storage, handler = faulty
    handler.faults[:] = ["cut"] * 12
    with refused(DataError, "s3://bucket/x/k", "IncompleteReadError", "data.endpoint"):
        storage.download("k", tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_store_that_refuses_a_write(faulty: tuple[S3Storage, type[_FaultyHandler]]) -> None:
    with refused(StorageError, "s3://bucket/x/k", "written", 507):
        faulty[0].write("k", b"data")


def test_a_folder_goes_whole(storage: Storage) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        storage.write(key, b"x")
    storage.delete_folder("a")
    storage.delete_folder("absent")
    assert [item.key for item in storage.list()] == ["ab/3"]


def test_a_checksum_that_the_store_only_repeats_is_not_believed(storage: Storage) -> None:
    """The embedded store answers with what the client claimed, whatever the bytes are."""
    assert isinstance(storage, S3Storage)
    storage.write("right", b"bytes")
    name = {"Bucket": storage.bucket, "Key": f"{storage.prefix}/k"}
    claimed = base64.b64encode(bytes(8)).decode()
    storage.client.put_object(**name, Body=b"bytes", ChecksumCRC64NVME=claimed)
    answer = storage.client.head_object(**name, ChecksumMode="ENABLED")
    assert answer["ChecksumCRC64NVME"] == claimed
    assert checksum_of(storage, "k") == checksum_of(storage, "right") != "0" * 16
