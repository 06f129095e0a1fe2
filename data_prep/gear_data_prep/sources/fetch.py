"""Downloads of untrusted addresses: bounded in size, time and rate, and only to public hosts."""

import logging
import random
import ssl
import threading
import time
from typing import Any, NamedTuple
from urllib.parse import urljoin

import urllib3

from gear_data_prep.sources.response_body import image_of
from gear_data_prep.sources.row_connection import (
    CLOCK,
    FetchError,
    HttpPool,
    HttpsPool,
    RetryError,
    RowClock,
)

_CHUNK_BYTES = 1 << 16
_MAX_REDIRECTS = 5
_MAX_WAIT_S = 20.0
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_HEADERS = {
    "User-Agent": "gear-dist (dataset download)",
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
}
_HOSTS_KEPT = 10_000


class FetchLimits(NamedTuple):
    """What one download may cost."""

    max_bytes: int = 64 << 20
    """Longer bodies are refused."""
    timeout_s: float = 10.0
    """Seconds without a byte that end a try."""
    total_s: float = 60.0
    """Seconds that a download may take in all, retries included; waits for --rate are not."""
    attempts: int = 3
    """Tries of an address that answers 5xx or 429, stalls or breaks off."""
    rate: float = 10.0
    """Requests a second to one host; 0: as fast as it answers."""
    private: bool = False
    """Whether loopback, private and link-local addresses may be asked."""


class Fetcher:
    """Downloads; shared by threads."""

    def __init__(self, limits: FetchLimits, threads: int) -> None:
        self._limits = limits
        # One context: each would read the machine's certificates again.
        self._pool = urllib3.PoolManager(
            num_pools=256, maxsize=threads, block=False, ssl_context=ssl.create_default_context()
        )
        self._pool.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
        # It tells of odd headers with a traceback and the address; a row's error is enough.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
        self._turns = _Turns(limits.rate)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all downloads soon; what they give then is worth nothing."""
        self._stopped.set()

    def fetch(self, url: str) -> bytes:
        """The image behind an address.

        Raises:
            FetchError: no such scheme, a host that is not public, a refusal, too long, too slow, or
                a body that is no image.
        """
        limits = self._limits
        clock = RowClock(
            limits.total_s, limits.timeout_s, private=limits.private, stopped=self._stopped
        )
        token = CLOCK.set(clock)
        try:
            return self._try(url.strip(), clock)
        except FetchError:
            raise
        except Exception as error:
            # Servers send anything, and the libraries that read it raise anything; it must not
            # end the other rows.
            raise FetchError(f"cannot be fetched ({type(error).__name__})") from error
        finally:
            CLOCK.reset(token)

    def _try(self, url: str, clock: RowClock) -> bytes:
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return self._follow(url, clock)
            except RetryError as error:
                # Jitter keeps many threads from coming back together.
                wait = max(error.wait_s, random.uniform(0, 0.5 * 2**attempt))
                if attempt == self._limits.attempts or wait > clock.remaining_s:
                    raise FetchError(str(error)) from None
                clock.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, url: str, clock: RowClock) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            clock.wait_turn(self._turns.take(_host(url)))
            answer = self._request(url, clock)
            try:
                if answer.status in _REDIRECTS and "location" in answer.headers:
                    url = _redirected(url, answer.headers["location"])
                    continue
                return self._body(answer, clock)
            finally:
                # A body that is not read to its end would be read before the connection's next use.
                answer.close()
        raise FetchError(f"more than {_MAX_REDIRECTS} redirects")

    def _request(self, url: str, clock: RowClock) -> Any:
        timeout = clock.next_wait()
        try:
            return self._pool.request(
                "GET",
                url,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=timeout, read=timeout),
                headers=_HEADERS,
            )
        except urllib3.exceptions.SSLError as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, ssl.SSLCertVerificationError):
                # OpenSSL names the host, which would make each row's reason one of its own.
                reason = cause.verify_message.partition(", ")[0]
                raise FetchError(f"its certificate is refused: {reason}") from None
            raise clock.retry(error) from None
        except urllib3.exceptions.HTTPError as error:
            raise clock.retry(error) from None

    def _body(self, answer: Any, clock: RowClock) -> bytes:
        if answer.status in _AGAIN:
            raise RetryError(f"HTTP {answer.status}", _retry_after(answer))
        if answer.status != 200:
            raise FetchError(f"HTTP {answer.status}")
        too_long = f"longer than {self._limits.max_bytes} bytes"
        if (_number(answer.headers.get("content-length")) or 0) > self._limits.max_bytes:
            raise FetchError(too_long)
        data = bytearray()
        try:
            for chunk in answer.stream(_CHUNK_BYTES):
                data += chunk
                if len(data) > self._limits.max_bytes:
                    raise FetchError(too_long)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise clock.retry(error) from None
        encoding = answer.headers.get("content-encoding", "")
        return image_of(bytes(data), encoding, self._limits.max_bytes)


class _Turns:
    """When each host may be asked next."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, host: str) -> float:
        """Take the next turn; the seconds until then."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = time.monotonic()
            if len(self._next) > _HOSTS_KEPT:
                self._next = {name: turn for name, turn in self._next.items() if turn > now}
            turn = max(now, self._next.get(host, now))
            self._next[host] = turn + 1 / self._rate
        return turn - now


def _host(url: str) -> str:
    """The host of an address that may be asked."""
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        raise FetchError("no URL") from None
    if parts.scheme not in ("http", "https") or not parts.host or parts.port == 0:
        raise FetchError("no http or https URL")
    if parts.auth is not None:
        raise FetchError("its URL holds a user name or password, which are never sent")
    return parts.host


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchError("redirected to no URL") from None


def _number(text: str | None) -> int | None:
    """A header's number; None where it is missing or none (`isdigit` alone passes for others)."""
    if text and text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    return None


def _retry_after(answer: Any) -> float:
    return min(_number(answer.headers.get("retry-after")) or 0.0, _MAX_WAIT_S)
