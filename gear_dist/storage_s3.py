"""s3:// behind the `Storage` interface, by boto3; errors in terms of the settings to mend."""

import base64
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore import exceptions
from botocore.config import Config
from urllib3.exceptions import HTTPError

from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.storage import COPY_BYTES, MissingObjectError, ObjectInfo, atomic_file, check_key

CONNECT_TIMEOUT_S = 2
READ_TIMEOUT_S = 30
MAX_ATTEMPTS = 3
MULTIPART_BYTES = 64 << 20
"""Larger objects go up in parts; smaller ones in one request that carries its MD5."""

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_NO_BUCKET = {"NoSuchBucket"}
_BAD_NAME = {"InvalidBucketName"}
_BAD_CREDENTIALS = {
    "403",
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_UNREACHABLE = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    HTTPError,
)
Result = TypeVar("Result")


def make_client(
    endpoint: str = "",
    *,
    attempts: int = MAX_ATTEMPTS,
    read_timeout_s: float = READ_TIMEOUT_S,
    **credentials: str,
) -> Any:
    """A boto3 S3 client that gives up on a silent endpoint within seconds.

    Args:
        endpoint: overrides AWS_ENDPOINT_URL; with either, buckets are addressed by path.
        attempts: tries of a request (standard mode: backoff with jitter).
        read_timeout_s: seconds without an answer, or without more of it, that end a try.
        credentials: `aws_access_key_id` and `aws_secret_access_key`; else the usual chain.

    Raises:
        ConfigError: the endpoint is not a URL.
    """
    target = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    on_loopback = urlsplit(target).hostname in ("127.0.0.1", "localhost", "::1")
    from_environment = any(os.environ.get(f"AWS_ENDPOINT_URL{end}") for end in ("", "_S3"))
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if endpoint or from_environment else "auto"},
        proxies={} if on_loopback else None,
        # Several S3 servers answer a ranged read with the checksum of the whole object, which
        # botocore's default then takes for corruption; our manifests carry checksums anyway.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = boto3.session.Session()
        return session.client("s3", endpoint_url=endpoint or None, config=config, **credentials)
    except ValueError as error:
        raise ConfigError(f"data.endpoint={endpoint!r} or AWS_ENDPOINT_URL: {error}") from None
    except exceptions.BotoCoreError as error:
        raise ConfigError(f"the AWS settings of this machine cannot be used: {error}") from None


class S3Storage:
    """A prefix of a bucket."""

    def __init__(self, address: str, endpoint: str = "") -> None:
        parts = urlsplit(address)
        if not parts.netloc:
            raise ConfigError(f"{address}: use s3://BUCKET/PREFIX")
        self.bucket = parts.netloc
        self.prefix = address.removeprefix(f"s3://{self.bucket}").strip("/")
        self.address = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._client: Any = None
        self._client_pid = 0

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return S3Storage, (self.address, self.endpoint)

    @property
    def client(self) -> Any:
        """This process's client: connections must not be shared across a fork."""
        with self._lock:
            if self._client is None or self._client_pid != os.getpid():
                self._client, self._client_pid = make_client(self.endpoint), os.getpid()
            return self._client

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def _of(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._name(key)}

    def read(self, key: str) -> bytes:
        return self._retry_body(key, lambda: self._get(key).read())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        span = f"bytes={start}-{start + length - 1}"
        data = self._retry_body(key, lambda: self._get(key, Range=span).read())
        if len(data) != length:
            raise DataError(f"{self.address}/{key}: {span} are beyond its end")
        return data

    def download(self, key: str, path: Path) -> None:
        def attempt() -> None:
            body = self._get(key)
            with atomic_file(path) as stream:
                shutil.copyfileobj(body, stream, COPY_BYTES)

        self._retry_body(key, attempt)

    def write(self, key: str, data: bytes) -> None:
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._put(
            key,
            lambda: self.client.put_object(**self._of(key), Body=data, ContentMD5=digest),
        )

    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        # An unnamed file: it vanishes with its process, however that ends.
        try:
            with tempfile.TemporaryFile() as stream:
                yield stream
                self._upload_stream(key, stream)
        except OSError as error:
            message = f"{tempfile.gettempdir()}: cannot be written: {error.strerror or error}"
            raise StorageError(f"{message}; set TMPDIR to a folder with free space") from None

    def upload(self, key: str, path: Path) -> None:
        try:
            with open(path, "rb") as stream:
                self._upload_stream(key, stream)
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

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        root = f"{self.prefix}/" if self.prefix else ""
        try:
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=root + prefix):
                for item in page.get("Contents", ()):
                    yield ObjectInfo(item["Key"].removeprefix(root), int(item["Size"]))
        except exceptions.ClientError as error:
            if _code(error) not in _NO_BUCKET:
                self._fail(prefix, error)
        except (*_UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail(prefix, error)

    def delete(self, key: str) -> None:
        try:
            self.client.delete_object(**self._of(key))
        except exceptions.ClientError as error:
            if _code(error) not in _ABSENT | _NO_BUCKET:
                self._fail(key, error, writing=True)
        except (*_UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail(key, error, writing=True)

    def remove_leftovers(self) -> int:
        """Abort unfinished multipart uploads under this prefix."""
        root = f"{self.prefix}/" if self.prefix else ""
        try:
            found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=root)
            uploads = found.get("Uploads", ())
            for item in uploads:
                self.client.abort_multipart_upload(
                    Bucket=self.bucket, Key=item["Key"], UploadId=item["UploadId"]
                )
        except exceptions.ClientError as error:
            if _code(error) not in _ABSENT | _NO_BUCKET | {"NotImplemented", "NoSuchUpload"}:
                self._fail("", error, writing=True)
            return 0
        except (*_UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail("", error, writing=True)
        return len(uploads)

    def _head(self, key: str) -> Any:
        try:
            return self.client.head_object(**self._of(key))
        except (*_UNREACHABLE, exceptions.BotoCoreError, exceptions.ClientError) as error:
            self._fail(key, error)

    def _get(self, key: str, **options: str) -> Any:
        return self.client.get_object(**self._of(key), **options)["Body"]

    def _retry_body(self, key: str, attempt: Callable[[], Result]) -> Result:
        """botocore retries a request but not a body that breaks off: that is done here."""
        for left in reversed(range(MAX_ATTEMPTS)):
            try:
                return attempt()
            except exceptions.EndpointConnectionError as error:
                self._fail(key, error)
            except _UNREACHABLE as error:
                if not left:
                    self._fail(key, error)
                time.sleep(0.2 * 2 ** (MAX_ATTEMPTS - left))
            except (exceptions.BotoCoreError, exceptions.ClientError) as error:
                self._fail(key, error)
        raise AssertionError("the last attempt returns or raises")

    def _upload_stream(self, key: str, stream: BinaryIO) -> None:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if size > MULTIPART_BYTES:
            # The transfer manager closes what it is given, so it gets its own descriptor.
            transfer = TransferConfig(multipart_threshold=MULTIPART_BYTES)

            def attempt() -> None:
                with os.fdopen(os.dup(stream.fileno()), "rb") as copy:
                    copy.seek(0)
                    self.client.upload_fileobj(copy, **self._of(key), Config=transfer)

            self._put(key, attempt)
            return
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
        md5 = base64.b64encode(digest.digest()).decode()

        def send() -> None:
            stream.seek(0)
            self.client.put_object(**self._of(key), Body=stream, ContentMD5=md5)

        self._put(key, send)

    def _put(self, key: str, send: Callable[[], object]) -> None:
        """Send an object; where its bucket is missing, create that and send again."""
        for first in (True, False):
            try:
                send()
                return
            except exceptions.ClientError as error:
                if first and _code(error) in _NO_BUCKET:
                    self.ensure_bucket()
                    continue
                self._fail(key, error, writing=True)
            except S3UploadFailedError as error:
                self._fail(key, error, writing=True)
            except (*_UNREACHABLE, exceptions.BotoCoreError) as error:
                self._fail(key, error, writing=True)

    def ensure_bucket(self) -> None:
        """Create the bucket where it is absent."""
        region = self.client.meta.region_name
        elsewhere = region not in (None, "us-east-1", "aws-global")
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}} if elsewhere else {}
        try:
            self.client.create_bucket(Bucket=self.bucket, **where)
        except exceptions.ClientError as error:
            if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                self._fail("", error, writing=True)
        except (*_UNREACHABLE, exceptions.BotoCoreError) as error:
            self._fail("", error, writing=True)

    def _fail(self, key: str, error: Exception, writing: bool = False) -> NoReturn:
        """Raise the project's error for one of boto3's."""
        name = f"{self.address}/{key}".rstrip("/")
        code = _code(error)
        store = self.client.meta.endpoint_url
        if code in _ABSENT:
            raise MissingObjectError(f"{name}: no such object at {store}") from None
        if code in _BAD_NAME or isinstance(error, exceptions.ParamValidationError):
            raise ConfigError(
                f"{name}: {self.bucket} is no bucket name (3 to 63 lower-case letters, digits, "
                "dots and hyphens)"
            ) from None
        if code in _NO_BUCKET:
            raise DataError(
                f"{name}: bucket {self.bucket} does not exist at {store}: check the address, "
                "data.endpoint and AWS_ENDPOINT_URL"
            ) from None
        none_found = isinstance(
            error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
        )
        if code in _BAD_CREDENTIALS or none_found:
            problem = "no credentials are set" if none_found else f"{store} refuses ({code})"
            raise DataError(
                f"{name}: {problem}: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                '(of the embedded store: `eval "$(gear-dist store env)"`)'
            ) from None
        if isinstance(error, _UNREACHABLE):
            raise DataError(
                f"{name}: no object store answers at {store} ({type(error).__name__}): check "
                "data.endpoint and AWS_ENDPOINT_URL, or run `gear-dist store start`"
            ) from None
        kind = StorageError if writing else DataError
        verb = "written" if writing else "read"
        raise kind(f"{name}: cannot be {verb} at {store}: {error}") from None


def _code(error: BaseException) -> str:
    cause = error.__context__ if isinstance(error, S3UploadFailedError) else error
    return str(getattr(cause, "response", {}).get("Error", {}).get("Code", ""))
