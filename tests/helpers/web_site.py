"""A small web site on loopback, with pictures, redirects and failures."""

import contextlib
import gzip
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator

from image_files import encode


class Handler(http.server.BaseHTTPRequestHandler):
    seen: Counter[str]
    times: list[float]

    def do_GET(self) -> None:
        self.seen[self.path] += 1
        self.times.append(time.monotonic())
        word, _, number = self.path.strip("/").partition("/")
        getattr(self, f"_{word}", self._missing)(number)

    def _answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _image(self, number: str) -> None:
        self._answer(200, encode(int(number)))

    def _flaky(self, number: str) -> None:
        first = self.seen[self.path] == 1
        self._answer(503 if first else 200, b"" if first else encode(int(number)))

    def _moved(self, number: str) -> None:
        self._answer(302, Location=f"/image/{number}")

    def _loop(self, _: str) -> None:
        self._answer(302, Location="/loop")

    def _private(self, _: str) -> None:
        self._answer(302, Location="http://169.254.169.254/latest")

    def _file(self, _: str) -> None:
        self._answer(302, Location="file:///etc/passwd")

    def _text(self, _: str) -> None:
        self._answer(200, b"<html>a page, no picture</html>")

    def _empty(self, _: str) -> None:
        self._answer(200)

    def _junk(self, _: str) -> None:
        self._answer(200, b"\x00\x01\x02" * 50)

    def _part(self, number: str) -> None:
        """Cut off where the picture comes from; whole when it is asked for the fourth time."""
        data = encode(int(number))
        self._answer(200, data if self.seen[self.path] > 3 else data[:-40])

    def _header(self, _: str) -> None:
        self._answer(200, b"\x89PNG\r\n\x1a\n" + b"x" * 40 + b"IEND")

    def _avif(self, _: str) -> None:
        self._answer(200, b"\x00\x00\x00\x20ftypavif" + b"x" * 40)

    def _gzip(self, number: str) -> None:
        self._answer(200, gzip.compress(encode(int(number))), Content_Encoding="gzip")

    def _bomb(self, _: str) -> None:
        self._answer(200, gzip.compress(bytes(1_000_000)), Content_Encoding="gzip")

    def _torn(self, _: str) -> None:
        self._answer(200, gzip.compress(encode(1))[:-20], Content_Encoding="gzip")

    def _brotli(self, _: str) -> None:
        self._answer(200, b"anything", Content_Encoding="br")

    def _claimed(self, number: str) -> None:
        """S3 keeps such a header of uploads."""
        self._answer(200, encode(int(number)), Content_Encoding="aws-chunked")

    def _long(self, _: str) -> None:
        self._answer(200, b"x" * 300_000)

    def _endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b"x" * 1000)
            time.sleep(0.02)

    def _slow(self, _: str) -> None:
        time.sleep(1.5)
        self._answer(200, b"late")

    def _cut(self, _: str) -> None:
        self._answer(200, b"half", Content_Length="100")

    def _missing(self, _: str) -> None:
        self._answer(404)

    def log_message(self, *_: object) -> None:
        pass


class Site:
    """A web site on loopback."""

    def __init__(self, handler: type[Handler], port: int) -> None:
        self.handler = handler
        self.url = f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serve_site() -> Iterator[Site]:
    """A site that ends with the block."""
    handler = type("Handler", (Handler,), {"seen": Counter(), "times": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield Site(handler, server.server_port)
        server.shutdown()
        thread.join()
