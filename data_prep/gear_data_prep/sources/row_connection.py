"""Connections for untrusted addresses: to vetted hosts only, and never past their row's time.

A host's name is looked up once a connection; the addresses that were checked are those that are
connected, while the Host header, SNI and the certificate's check keep the name.
"""

import http.client
import io
import socket
import threading
import time
from contextvars import ContextVar
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from gear_data_prep.sources.public_address import SocketAddress, resolve

_BUFFER_BYTES = 1 << 16


class FetchError(Exception):
    """A download that failed; the message says why, in words that two runs share."""


class RetryError(Exception):
    """Worth another try, after so many seconds where the server said."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RowClock:
    """The time of one row, and whom it may ask.

    Args:
        total_s: seconds that it may take in all, waits for its host's turn not counted.
        silence_s: seconds without a byte that end a try.
        private: whether addresses that are not public may be asked.
        stopped: set where all rows are to end.
    """

    def __init__(
        self, total_s: float, silence_s: float, *, private: bool, stopped: threading.Event
    ) -> None:
        self._total_s, self._silence_s = total_s, silence_s
        self.private = private
        self._stopped = stopped
        self._end = time.monotonic() + total_s

    @property
    def remaining_s(self) -> float:
        """Seconds left; below 0: it is late."""
        return self._end - time.monotonic()

    def left(self) -> float:
        """Seconds left; FetchError where there are none."""
        seconds = self.remaining_s
        if seconds <= 0 or self._stopped.is_set():
            raise FetchError(f"slower than {self._total_s:g} s (allow: --row-timeout)")
        return seconds

    def next_wait(self) -> float:
        """The longest that it may wait for the next byte, seconds; FetchError as `left`."""
        return min(self._silence_s, self.left())

    def retry(self, error: Exception) -> RetryError:
        """The failure of a try; FetchError where the row's time is up."""
        self.left()
        return RetryError(_reason(error))

    def sleep(self, seconds: float) -> None:
        """Wait before another try."""
        self._stopped.wait(seconds)

    def wait_turn(self, seconds: float) -> None:
        """Wait where others are asked first: no fault of the row's, so its time stands still."""
        start = time.monotonic()
        self._stopped.wait(seconds)
        self._end += time.monotonic() - start


CLOCK: ContextVar[RowClock] = ContextVar("CLOCK")
"""That of the row which this thread fetches; a kept connection serves one row after another."""


class _RowReader(io.RawIOBase):
    """A socket's bytes; every wait for some is within the row's time, however slow they drip."""

    def __init__(self, sock: socket.socket, raw: Any) -> None:
        self._sock, self._raw = sock, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(CLOCK.get().next_wait())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _RowResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_RowReader(sock, self.fp.detach()), _BUFFER_BYTES)


class _RowHttpConnection(HTTPConnection):
    response_class = _RowResponse

    def _new_conn(self) -> socket.socket:
        return _connect(self._dns_host.strip("[]"), self.port or 80)


class _RowHttpsConnection(HTTPSConnection):
    response_class = _RowResponse

    def _new_conn(self) -> socket.socket:
        return _connect(self._dns_host.strip("[]"), self.port or 443)


class HttpPool(urllib3.HTTPConnectionPool):
    """Kept connections to one host."""

    ConnectionCls = _RowHttpConnection


class HttpsPool(urllib3.HTTPSConnectionPool):
    """Kept connections to one host."""

    ConnectionCls = _RowHttpsConnection


def _connect(host: str, port: int) -> socket.socket:
    """A connection to the first of a host's addresses that answers."""
    clock = CLOCK.get()
    failure: OSError = OSError()
    for found in _vetted_addresses(host, port, clock):
        sock = socket.socket(found.family, socket.SOCK_STREAM)
        try:
            # It holds for the TLS handshake as well, which is one wait.
            sock.settimeout(clock.next_wait())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(found.address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except FetchError:
            sock.close()
            raise
    raise clock.retry(failure)


def _vetted_addresses(host: str, port: int, clock: RowClock) -> list[SocketAddress]:
    """All addresses of a host, none of which may be private."""
    try:
        found = resolve(host, port, clock.left())
    except TimeoutError as error:
        raise clock.retry(error) from None
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise RetryError("its host's name could not be looked up") from None
        raise FetchError("its host has no address") from None
    except (OSError, ValueError):
        raise FetchError("its host has no address") from None
    if not clock.private and not all(address.is_public for address in found):
        raise FetchError("its host is not on the public internet (allow with --allow-private)")
    return found


def _reason(error: Exception) -> str:
    """What went wrong, without addresses of objects or ports that no two runs share."""
    if isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError):
        return "timed out"
    return f"connection failed ({type(error).__name__})"
