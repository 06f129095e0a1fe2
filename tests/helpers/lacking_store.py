"""A proxy before the object store that takes one capability away, or adds one that it lacks."""

import contextlib
import http.client
import http.server
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

LACKS = (
    "write and read",
    "overwrite",
    "absent objects",
    "delete",
    "ranged reads",
    "listing",
    "listing in order",
    "listing in pages",
    "multipart upload",
    "unfinished uploads are invisible",
    "Content-MD5",
    "abort and list uploads",
    "time of change",
)
"""What can be taken away."""
ADDS = "conditional create"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: str
    changes: str
    written: dict[str, bytes]
    unfinished: set[str]

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        own = self._own_answer(url.path, query, body)
        status, headers, data = own or self._passed_on(body)
        if own is None and self.command == "GET" and "list-type" in query:
            data = self._change_list(data)
        if self.changes == "time of change":
            headers = {k: v for k, v in headers.items() if k.lower() != "last-modified"}
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        bare = self.command == "HEAD" or status == 204
        size = headers.get("Content-Length", "0") if bare else str(len(data))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(b"" if bare else data)

    def _own_answer(
        self, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """What is answered without the store; None: it is asked."""
        change, method = self.changes, self.command
        plain = method == "PUT" and "uploadId" not in query and "tagging" not in query
        if plain and path in self.written and change == "overwrite":
            return 200, {}, b""
        if plain and path in self.written and change == ADDS and "If-None-Match" in self.headers:
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        if plain and change == "Content-MD5" and "Content-MD5" in self.headers:
            return 200, {}, b""
        if plain:
            self.written[path] = body
        if method == "DELETE" and change == "delete":
            return 204, {}, b""
        if change == "abort and list uploads" and method == "GET" and "uploads" in query:
            return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"
        if method == "POST" and "uploads" in query:
            if change == "multipart upload":
                return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"
            self.unfinished.add(path)
        if method in ("GET", "HEAD") and not query:
            return self._read(path)
        return None

    def _read(self, path: str) -> tuple[int, dict[str, str], bytes] | None:
        data = self.written.get(path)
        if self.changes == "ranged reads" and data and "Range" in self.headers:
            return 200, {}, data
        if self.changes == "write and read" and data and self.command == "GET":
            return 200, {}, data[::-1]
        hidden = self.changes == "unfinished uploads are invisible" and path in self.unfinished
        if hidden or (self.changes == "absent objects" and path.endswith("/never")):
            return 200, {}, b""
        return None

    def _passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.target, timeout=30)
        # The Host header is part of the signature, so it stays the proxy's.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def _change_list(self, data: bytes) -> bytes:
        entries = re.findall(rb"<Contents>.*?</Contents>", data, re.DOTALL)
        if self.changes == "listing in order":
            before, _, rest = data.partition(b"<Contents>")
            after = rest.rpartition(b"</Contents>")[2]
            return before + b"".join(reversed(entries)) + after if entries else data
        if self.changes == "listing" and entries:
            return data.replace(entries[-1], b"")
        if self.changes == "listing in pages":
            return data.replace(b"<IsTruncated>true", b"<IsTruncated>false")
        return data

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def changed_store(target: str, changes: str) -> Iterator[str]:
    """The address of a running proxy before the store at `target`; `changes`: see LACKS, ADDS."""
    state = {"written": {}, "unfinished": set()}
    of = {"target": urlsplit(target).netloc, "changes": changes, **state}
    handler = type("Handler", (_Handler,), of)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
