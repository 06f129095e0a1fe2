"""s3:// behind the `Storage` interface, by boto3; errors in terms of the settings to mend."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from botocore import exceptions

from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.redaction import refuse_user
from gear_dist.storage.addresses import parse_address
from gear_dist.storage.atomic import COPY_BYTES, atomic_file
from gear_dist.storage.base import MissingObjectError, ObjectInfo, check_key
from gear_dist.storage.s3_client import (
    ABSENT,
    BAD_CREDENTIALS,
    BAD_NAME,
    NO_BUCKET,
    UNREACHABLE,
    Result,
    error_code,
    is_loopback,
    make_client,
    with_retries,
)
from gear_dist.storage.s3_upload import Target, full_checksum, put_bytes, upload_stream

SETTLED_S = 2
"""Seconds without a change after which the time of change tells an object from its successor."""
_NO_CONDITIONS = {"NotImplemented", "501"}
# Of an error whose body breaks off only the status is left.
_MAYBE_NO_BUCKET = NO_BUCKET | {"404"}
_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}


def _time_tag(answer: dict[str, Any]) -> str:
    """The time of change in place of a tag, by the store's clock.

    It is told in seconds: only of what has not changed for longer will a later change be seen.
    """
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    changed = answer.get("LastModified")
    if not told or changed is None:
        return ""
    settled = (parsedate_to_datetime(told) - changed).total_seconds() >= SETTLED_S
    return f"changed {changed.isoformat()}" if settled else ""


class S3Storage:
    """A prefix of a bucket."""

    def __init__(self, address: str, endpoint: str = "") -> None:
        refuse_user("the address of a bucket", address)
        parsed = parse_address(address)
        self.bucket, self.prefix = parsed
        self.address = str(parsed)
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._client: Any = None
        self._client_pid = 0
        self.activity = 0

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return S3Storage, (self.address, self.endpoint)

    @property
    def client(self) -> Any:
        """This process's client: connections must not be shared across a fork."""
        with self._lock:
            if self._client is None or self._client_pid != os.getpid():
                self._client, self._client_pid = make_client(self.endpoint, attempts=1), os.getpid()
                self._client.meta.events.register("before-send.s3", self._count_request)
            return self._client

    def _count_request(self, **_: Any) -> None:
        self.activity += 1

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def _of(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._name(key)}

    def _renew(self) -> None:
        """Forget the client, so that the next one reads the credentials again."""
        with self._lock:
            self._client = None

    def _try(self, key: str, attempt: Callable[[], Result], *, writing: bool = False) -> Result:
        """Retry what passes; the rest in the project's terms."""
        try:
            return with_retries(attempt, self._renew)
        except (*UNREACHABLE, exceptions.BotoCoreError, exceptions.ClientError) as error:
            self._fail(key, error, writing)

    def _target(self, key: str) -> Target:
        loopback = is_loopback(self.client.meta.endpoint_url)
        return Target(lambda: self.client, self._renew, self.bucket, self._name(key), loopback)

    def read(self, key: str) -> bytes:
        return self._try(key, lambda: self._get(key).read())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        span = f"bytes={start}-{start + length - 1}"
        data = self._try(key, lambda: self._get(key, Range=span).read())
        if len(data) != length:
            raise DataError(f"{self.address}/{key}: {span} are beyond its end")
        return data

    def download(self, key: str, path: Path) -> None:
        def attempt() -> None:
            body = self._get(key)
            with atomic_file(path) as stream:
                while data := body.read(COPY_BYTES):
                    stream.write(data)
                    self.activity += 1

        self._try(key, attempt)

    def write(self, key: str, data: bytes) -> None:
        self._put(key, lambda: put_bytes(self._target(key), data))

    def create(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False  # not every store honours the condition below
        try:
            self._put_unless_there(key, data)
        except exceptions.ClientError as error:
            if error_code(error) in _TAKEN:
                return False
            self._fail(key, error, writing=True)
        return True

    def _put_unless_there(self, key: str, data: bytes) -> None:
        try:
            put_bytes(self._target(key), data, IfNoneMatch="*")
        except exceptions.ClientError as error:
            if error_code(error) not in _NO_CONDITIONS | _MAYBE_NO_BUCKET:
                raise
            self.write(key, data)
        except (*UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail(key, error, writing=True)

    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        # An unnamed file: it vanishes with its process, however that ends.
        try:
            with tempfile.TemporaryFile() as stream:
                yield stream
                self._put(key, lambda: upload_stream(self._target(key), stream))
        except OSError as error:
            message = f"{tempfile.gettempdir()}: cannot be written: {error.strerror or error}"
            raise StorageError(f"{message}; set TMPDIR to a folder with free space") from None

    def upload(self, key: str, path: Path) -> None:
        try:
            with open(path, "rb") as stream:
                self._put(key, lambda: upload_stream(self._target(key), stream))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None

    def exists(self, key: str) -> bool:
        try:
            self._head(key)
        except MissingObjectError:
            return False
        return True

    def size(self, key: str) -> int:
        return int(self._head(key)["ContentLength"])

    def known_checksum(self, key: str) -> str:
        answer = self._head(key, ChecksumMode="ENABLED")
        # Stores that keep what the client claimed, without a look at the bytes, give no type.
        return full_checksum(answer) if answer.get("ChecksumType") == "FULL_OBJECT" else ""

    def tag(self, key: str) -> str:
        answer = self._head(key)
        tag = str(answer.get("ETag", "")).strip('"')
        return tag or _time_tag(answer)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        root = f"{self.prefix}/" if self.prefix else ""
        options = {"Bucket": self.bucket, "Prefix": root + prefix}
        while True:
            page = self._unless_no_bucket(prefix, lambda: self.client.list_objects_v2(**options))
            for item in page.get("Contents", ()):
                yield ObjectInfo(item["Key"].removeprefix(root), int(item["Size"]))
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def _unless_no_bucket(self, key: str, attempt: Callable[[], Any]) -> Any:
        """An answer, retried; an empty one where the bucket does not exist."""
        try:
            return with_retries(attempt, self._renew)
        except exceptions.ClientError as error:
            if error_code(error) not in _MAYBE_NO_BUCKET:
                self._fail(key, error)
            return {}
        except (*UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail(key, error)

    def delete(self, key: str) -> None:
        try:
            with_retries(lambda: self.client.delete_object(**self._of(key)), self._renew)
        except exceptions.ClientError as error:
            if error_code(error) not in ABSENT | NO_BUCKET:
                self._fail(key, error, writing=True)
        except (*UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail(key, error, writing=True)

    def delete_folder(self, folder: str) -> None:
        for item in list(self.list(f"{check_key(folder)}/")):
            self.delete(item.key)

    def remove_leftovers(self, is_ours: Callable[[str], bool] = lambda _: True) -> int:
        """Abort unfinished multipart uploads under this prefix."""
        root = f"{self.prefix}/" if self.prefix else ""
        options = {"Bucket": self.bucket, "Prefix": root}
        found: list[dict[str, str]] = []
        try:
            while True:
                page = with_retries(
                    lambda: self.client.list_multipart_uploads(**options), self._renew
                )
                found += page.get("Uploads", ())
                if not page.get("IsTruncated"):
                    break
                options["KeyMarker"] = page["NextKeyMarker"]
                options["UploadIdMarker"] = page["NextUploadIdMarker"]
            ours = [item for item in found if is_ours(item["Key"].removeprefix(root))]
            return sum([self._abort(item["Key"], item["UploadId"]) for item in ours])
        except exceptions.ClientError as error:
            if error_code(error) not in ABSENT | NO_BUCKET | {"NotImplemented", "NoSuchUpload"}:
                self._fail("", error, writing=True)
            return 0
        except (*UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail("", error, writing=True)

    def _abort(self, name: str, upload: str) -> bool:
        """Whether an unfinished upload was there; another run may have been faster."""
        of = {"Bucket": self.bucket, "Key": name, "UploadId": upload}
        try:
            with_retries(lambda: self.client.abort_multipart_upload(**of), self._renew)
        except exceptions.ClientError as error:
            if error_code(error) not in ABSENT | {"NoSuchUpload"}:
                raise
            return False
        return True

    def _head(self, key: str, **options: str) -> Any:
        return self._try(key, lambda: self.client.head_object(**self._of(key), **options))

    def _get(self, key: str, **options: str) -> Any:
        return self.client.get_object(**self._of(key), **options)["Body"]

    def _put(self, key: str, send: Callable[[], object]) -> None:
        """Send an object; where its bucket is missing, create that and send again."""
        for first in (True, False):
            try:
                send()
                return
            except exceptions.ClientError as error:
                if first and error_code(error) in _MAYBE_NO_BUCKET:
                    self.ensure_bucket()
                    continue
                self._fail(key, error, writing=True)
            except (*UNREACHABLE, exceptions.BotoCoreError) as error:
                self._fail(key, error, writing=True)

    def ensure_bucket(self) -> None:
        """Create the bucket where it is absent."""
        region = self.client.meta.region_name
        elsewhere = region not in (None, "us-east-1", "aws-global")
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}} if elsewhere else {}
        try:
            with_retries(
                lambda: self.client.create_bucket(Bucket=self.bucket, **where), self._renew
            )
        except exceptions.ClientError as error:
            if error_code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                self._fail("", error, writing=True)
        except (*UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail("", error, writing=True)

    def _fail(self, key: str, error: Exception, writing: bool = False) -> NoReturn:
        """Raise the project's error for one of boto3's."""
        name = f"{self.address}/{key}".rstrip("/")
        code = error_code(error)
        store = self.client.meta.endpoint_url
        if code in ABSENT:
            raise MissingObjectError(f"{name}: no such object at {store}") from None
        if code in BAD_NAME or isinstance(error, exceptions.ParamValidationError):
            raise ConfigError(
                f"{name}: {self.bucket} is not a bucket name (3 to 63 lower-case letters, digits, "
                "dots and hyphens)"
            ) from None
        if code in NO_BUCKET:
            raise MissingObjectError(
                f"{name}: bucket {self.bucket} does not exist at {store}: check the address, "
                "data.endpoint and AWS_ENDPOINT_URL"
            ) from None
        none_found = isinstance(
            error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
        )
        if code in BAD_CREDENTIALS or none_found:
            problem = "no credentials are set" if none_found else f"{store} refuses ({code})"
            raise DataError(
                f"{name}: {problem}: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                '(of the embedded store: `eval "$(gear-dist store env)"`)'
            ) from None
        if isinstance(error, UNREACHABLE):
            raise DataError(
                f"{name}: no object store answers at {store} ({type(error).__name__}): check "
                "data.endpoint and AWS_ENDPOINT_URL, or run `gear-dist store start`"
            ) from None
        kind = StorageError if writing else DataError
        verb = "written" if writing else "read"
        raise kind(f"{name}: cannot be {verb} at {store}: {error}") from None
