"""A proxy before the object store that spoils a share of the requests, or those that rules name."""

import contextlib
import dataclasses
import http.client
import http.server
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "slow", "truncated")
LOST = "lost"
"""The request reaches the store, its answer nobody."""
REFUSED = "403"
FULL = "full"
"""The store has no room for what is written."""
SILENT = "silent"
"""No answer for a while, and then none at all."""
TORN = "torn"
"""Half of the answer, as if that were all."""
_SLOW_S = 0.3
SILENT_S = 1.0
_DENIED = b"<Error><Code>AccessDenied</Code><Message>planted</Message></Error>"
_FULL = b"<Error><Code>QuotaExceeded</Code><Message>planted</Message></Error>"
_EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>planted</Message></Error>"


@dataclasses.dataclass
class Rule:
    """What befalls requests to some keys."""

    methods: str
    """Names of methods, such as "GET HEAD"."""
    path: str
    """Regular expression that is found in the path with its query."""
    fault: str
    times: int = -1
    """How often; -1: always."""
    after: int = 0
    """Matching requests that pass before."""
    action: Callable[[], None] | None = None
    """Called before a request that this befalls is passed on."""


class FaultProxy:
    """What the proxy is told, and what it has done."""

    def __init__(self, target: str, share: float, seed: int = 0, *, writes: bool = False) -> None:
        self.target = urlsplit(target).netloc
        self.share = share
        self.writes = writes
        self.done: Counter[str] = Counter()
        self.expired_tokens: set[str] = set()
        """Session tokens of credentials that are refused from now on."""
        self.rules: list[Rule] = []
        """The first that fits a request says what becomes of it."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def draw(self, method: str, path: str) -> str:
        """The fault of the next request; "none" for most."""
        rule = self._take_rule(method, path)
        if rule is not None:
            self.done[f"{method} {rule.fault}"] += 1
            if rule.action is not None:
                rule.action()
            return rule.fault
        with self._lock:
            spoiled = (self.writes or method == "GET") and self._random.random() < self.share
            faults = FAULTS if method == "GET" else (*FAULTS, LOST)
            fault = self._random.choice(faults) if spoiled else "none"
            self.done[fault if method == "GET" else f"{method} {fault}"] += 1
        return fault

    def _take_rule(self, method: str, path: str) -> Rule | None:
        with self._lock:
            for rule in self.rules:
                if method in rule.methods.split() and re.search(rule.path, path):
                    rule.after -= 1
                    if rule.after >= 0 or rule.times == 0:
                        continue
                    rule.times -= 1
                    return rule
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        if self.headers.get("X-Amz-Security-Token") in self.proxy.expired_tokens:
            self._refuse_token()
            return
        fault = self.proxy.draw(self.command, self.path)
        if fault == "reset":
            self._hang_up()
            return
        if fault == SILENT:
            time.sleep(SILENT_S)
            self._hang_up()
            return
        if fault == REFUSED:
            self._refuse(403, _DENIED)
            return
        if fault == FULL:
            self._refuse(400, _FULL)
            return
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.proxy.target, timeout=30)
        # The Host header is part of the signature, so it stays the proxy's.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        if fault == LOST:
            answer.read()
            self._hang_up()
        else:
            self._answer(answer, fault)
        connection.close()

    def _refuse_token(self) -> None:
        self.proxy.done["expired"] += 1
        self._refuse(400, _EXPIRED)

    def _refuse(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def _hang_up(self) -> None:
        # A linger of 0 s makes closing send a reset.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def _answer(self, answer: http.client.HTTPResponse, fault: str) -> None:
        data = answer.read()
        if fault == TORN:
            data = data[: len(data) // 2]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                self.send_header(name, value)
        bare = self.command == "HEAD" or answer.status in (204, 304)
        length = answer.getheader("Content-Length") if bare else str(len(data))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        half = len(data) // 2
        self.wfile.write(data[:half])
        if fault == "truncated":
            self.close_connection = True
            return
        if fault == "slow":
            self.wfile.flush()
            time.sleep(_SLOW_S)
        self.wfile.write(data[half:])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()


@contextlib.contextmanager
def fault_proxy(
    target: str, share: float, seed: int = 0, *, writes: bool = False
) -> Iterator[tuple[str, FaultProxy]]:
    """A running proxy: its address, and its record.

    Args:
        target: URL of the store.
        share: share of requests that are spoiled.
        seed: seed of the choice.
        writes: whether all kinds of requests are, else GETs only.
    """
    proxy = FaultProxy(target, share, seed, writes=writes)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", proxy
        finally:
            server.shutdown()
            thread.join()
