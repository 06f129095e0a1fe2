"""Downloads of untrusted addresses: bounded in size, time and rate, and only to public hosts."""

import ipaddress
import random
import socket
import threading
import time
from collections import defaultdict
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

_CHUNK_BYTES = 1 << 16
_MAX_REDIRECTS = 5
_MAX_WAIT_S = 20.0
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_AGENT = "gear-dist (dataset download)"


class FetchLimits(NamedTuple):
    """What one download may cost."""

    max_bytes: int = 64 << 20
    """Longer bodies are refused."""
    timeout_s: float = 10.0
    """Seconds without a byte that end a try."""
    total_s: float = 60.0
    """Seconds that a download may take in all, retries included."""
    attempts: int = 3
    """Tries of an address that answers 5xx or 429, stalls or breaks off."""
    rate: float = 10.0
    """Requests a second to one host; 0: as fast as it answers."""
    private: bool = False
    """Whether loopback, private and link-local addresses may be asked."""


class FetchError(Exception):
    """A download that failed; the message says why, in words that two runs share."""


class _RetryError(Exception):
    """Worth another try, after so many seconds where the server said."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Fetcher:
    """Downloads; shared by threads."""

    def __init__(self, limits: FetchLimits, threads: int) -> None:
        self._limits = limits
        self._pool = urllib3.PoolManager(num_pools=256, maxsize=threads, block=False)
        if not limits.private:
            self._pool.pool_classes_by_scheme = {"http": _PublicHttp, "https": _PublicHttps}
        self._next: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def fetch(self, url: str) -> bytes:
        """The body behind an address.

        Raises:
            FetchError: no such scheme, a host that is not public, a refusal, too long, too slow.
        """
        deadline = time.monotonic() + self._limits.total_s
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return self._follow(url, deadline)
            except _RetryError as error:
                # Jitter keeps many threads from coming back together.
                wait = max(error.wait_s, random.uniform(0, 0.5 * 2**attempt))
                late = time.monotonic() + wait > deadline
                if attempt == self._limits.attempts or late:
                    raise FetchError(str(error)) from None
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, url: str, deadline: float) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            parts = _split(url)
            self._wait_turn(parts.hostname or "", deadline)
            answer = self._request(url)
            try:
                if answer.status in _REDIRECTS and "location" in answer.headers:
                    url = urljoin(url, answer.headers["location"])
                    continue
                return self._body(answer, deadline)
            finally:
                # A body that is not read to its end would be read before the connection's next use.
                answer.close()
        raise FetchError(f"more than {_MAX_REDIRECTS} redirects")

    def _request(self, url: str) -> Any:
        timeout = self._limits.timeout_s
        try:
            return self._pool.request(
                "GET",
                url,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=timeout, read=timeout),
                headers={"User-Agent": _AGENT, "Accept": "image/*,*/*;q=0.5"},
            )
        except urllib3.exceptions.HTTPError as error:
            refused = _host_error(error)
            if refused is not None:
                raise FetchError(str(refused)) from None
            raise _RetryError(_reason(error)) from None
        except (ValueError, OSError) as error:
            raise FetchError(f"cannot be asked: {type(error).__name__}") from None

    def _body(self, answer: Any, deadline: float) -> bytes:
        if answer.status in _AGAIN:
            raise _RetryError(f"HTTP {answer.status}", _retry_after(answer))
        if answer.status != 200:
            raise FetchError(f"HTTP {answer.status}")
        too_long = f"longer than {self._limits.max_bytes} bytes"
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            raise FetchError(too_long)
        data = bytearray()
        try:
            for chunk in answer.stream(_CHUNK_BYTES):
                data += chunk
                if len(data) > self._limits.max_bytes:
                    raise FetchError(too_long)
                if time.monotonic() > deadline:
                    raise FetchError(f"slower than {self._limits.total_s:g} s")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _RetryError(_reason(error)) from None
        return bytes(data)

    def _wait_turn(self, host: str, deadline: float) -> None:
        if not self._limits.rate:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next[host])
            if turn > deadline:
                raise FetchError(f"its host's turn comes after {self._limits.total_s:g} s")
            self._next[host] = turn + 1 / self._limits.rate
        time.sleep(max(0.0, turn - now))


class _HostError(OSError):
    """A host that may not be asked, or that has no address."""


def _host_error(error: BaseException | None) -> _HostError | None:
    """The refusal that urllib3 has wrapped."""
    while error is not None and not isinstance(error, _HostError):
        error = error.__cause__ or error.__context__
    return error


def _public_address(host: str, port: int) -> str:
    """One address of a host, all of whose addresses are public: what was checked is connected."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _HostError("its host has no address") from None
    addresses = [str(item[4][0]) for item in found]
    for address in addresses:
        number = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(number, "ipv4_mapped", None) or number
        if not mapped.is_global or mapped.is_multicast:
            raise _HostError("its host is not a public one (allow: --allow-private)")
    return addresses[0]


class _PublicHttpConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        self._dns_host = _public_address(self._dns_host.strip("[]"), self.port or 80)
        return super()._new_conn()


class _PublicHttpsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        self._dns_host = _public_address(self._dns_host.strip("[]"), self.port or 443)
        return super()._new_conn()


class _PublicHttp(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicHttpConnection


class _PublicHttps(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PublicHttpsConnection


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FetchError("no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise FetchError("no http or https URL")
    return parts


def _retry_after(answer: Any) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), _MAX_WAIT_S) if text.isdigit() else 0.0


def _reason(error: Exception) -> str:
    """What went wrong, without addresses of objects or ports that no two runs share."""
    if isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError):
        return "timed out"
    return f"connection failed ({type(error).__name__})"
