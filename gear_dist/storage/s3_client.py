"""boto3 clients with short timeouts, and the retry policy."""

import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore import exceptions
from botocore.config import Config
from urllib3.exceptions import HTTPError

from gear_dist.errors import ConfigError
from gear_dist.redaction import refuse_user

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
CONNECT_TIMEOUT_S = 2
READ_TIMEOUT_S = 30
MAX_ATTEMPTS = 10
"""Tries of a request that fails for reasons that pass: 5xx, throttling, timeouts, broken bodies."""
SILENT_ATTEMPTS = 3
"""Tries where nothing answers at all: that is mostly a wrong address."""
_MAX_WAIT_S = 2.0

ABSENT = {"404", "NoSuchKey", "NotFound"}
NO_BUCKET = {"NoSuchBucket"}
BAD_NAME = {"InvalidBucketName"}
BAD_CREDENTIALS = {
    "403",
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "BadDigest"}
UNREACHABLE = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    HTTPError,
)
Result = TypeVar("Result")


def make_client(
    endpoint: str = "",
    *,
    attempts: int = SILENT_ATTEMPTS,
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
        ConfigError: the endpoint is not a URL, or holds a user or password.
    """
    refuse_user("data.endpoint or --endpoint", endpoint, endpoint=True)
    for name in ENDPOINT_VARIABLES:
        refuse_user(name, os.environ.get(name, ""), endpoint=True)
    target = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    on_loopback = is_loopback(target)
    from_environment = any(os.environ.get(name) for name in ENDPOINT_VARIABLES)
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={
            "addressing_style": "path" if endpoint or from_environment else "auto",
            # A body is signed, at SHA-256's speed, against whoever is in between: here no one is.
            **({"payload_signing_enabled": False} if on_loopback else {}),
        },
        proxies={} if on_loopback else None,
        # Several S3 servers answer a ranged read with the checksum of the whole object, which
        # botocore's default then takes for corruption; our manifests carry checksums anyway.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = boto3.session.Session()
        client = session.client("s3", endpoint_url=endpoint or None, config=config, **credentials)
    except ValueError as error:
        message = str(error)
        # Of AWS's configuration file, which is read here, an address may come with a password.
        refuse_user("endpoint_url of the AWS configuration", message, endpoint=True)
        raise ConfigError(f"data.endpoint={endpoint!r} or AWS_ENDPOINT_URL: {message}") from None
    except exceptions.BotoCoreError as error:
        raise ConfigError(f"the AWS settings of this machine cannot be used: {error}") from None
    refuse_user("endpoint_url of the AWS configuration", client.meta.endpoint_url, endpoint=True)
    return client


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this machine."""
    return urlsplit(endpoint).hostname in ("127.0.0.1", "localhost", "::1")


def error_code(error: BaseException) -> str:
    """The S3 code of an error; empty where the store did not answer."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def with_retries(attempt: Callable[[], Result], renew: Callable[[], None]) -> Result:
    """Call until it works; waits between tries grow, with jitter.

    botocore retries requests, but not bodies that break off: so all tries are counted here, and
    its own are switched off (`make_client(attempts=1)`).

    Args:
        attempt: one try.
        renew: called where credentials have expired, so that the next try reads them again.

    Raises:
        The last error, where it does not pass.
    """
    for number in range(1, MAX_ATTEMPTS + 1):
        try:
            return attempt()
        except (*UNREACHABLE, exceptions.ClientError) as error:
            if number >= _allowed_attempts(error):
                raise
            if error_code(error) in EXPIRED:
                renew()
        time.sleep(random.uniform(0, min(_MAX_WAIT_S, 0.1 * 2**number)))
    raise AssertionError("the last attempt returns or raises")


def _allowed_attempts(error: Exception) -> int:
    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if error_code(error) in EXPIRED:
            return SILENT_ATTEMPTS
        passing = status in _PASSING_STATUS or error_code(error) in _PASSING_CODES
        return MAX_ATTEMPTS if passing else 1
    silent = exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError
    return SILENT_ATTEMPTS if isinstance(error, silent) else MAX_ATTEMPTS
