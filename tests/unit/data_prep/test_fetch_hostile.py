"""Servers that answer nonsense, or never end: each row ends in its own error, the others arrive."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sources.fetch import Fetcher, FetchError, FetchLimits
from gear_dist.data.manifest import load_manifest
from gear_dist.storage.open import open_storage
from image_files import encode
from refusals import refused

IMAGE = encode(1)
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = f"Content-Length: {len(IMAGE)}\r\n".encode()
MOVED = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "

GOOD = {
    "plain": OK + LENGTH + b"\r\n" + IMAGE,
    # What follows is not numbers, and no reason to do without the picture.
    "length-superscript": OK + b"Content-Length: \xb2\r\n\r\n" + IMAGE,
    "length-words": OK + b"Content-Length: about 800\r\n\r\n" + IMAGE,
    "length-digits": OK + b"Content-Length: " + b"0" * 5000 + b"\r\n\r\n" + IMAGE,
    "odd-header": OK + LENGTH + b"no colon here\r\n\r\n" + IMAGE,
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + LENGTH + b"\r\n" + IMAGE,
}
BAD = {
    "retry-superscript": b"HTTP/1.1 503 Busy\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n",
    "retry-date": b"HTTP/1.1 429 No\r\nRetry-After: Fri, 27 Nov 2026\r\nContent-Length: 0\r\n\r\n",
    "moved-brackets": MOVED + b"http://[::1\r\n\r\n",
    "moved-port": MOVED + b"http://127.0.0.1:port/\r\n\r\n",
    "moved-nowhere": MOVED + b"http://\r\n\r\n",
    "moved-file": MOVED + b"file:///etc/hostname\r\n\r\n",
    "moved-empty-labels": MOVED + b"http://a..b/\r\n\r\n",
    "moved-long": MOVED + b"http://" + b"a" * 300 + b"/\r\n\r\n",
    "moved-bytes": MOVED + b"http://\xff\xfe/\r\n\r\n",
    "moved-password": MOVED + b"http://user:secret@127.0.0.1/\r\n\r\n",
    "status-word": b"HTTP/1.1 fine\r\n\r\n",
    "status-none": b"\r\n\r\n\r\n",
    "status-huge": b"HTTP/1.1 99999 Many\r\n\r\n",
    "chunk-size": OK + b"Transfer-Encoding: chunked\r\n\r\nsome\r\n" + IMAGE,
    "chunk-cut": OK + b"Transfer-Encoding: chunked\r\n\r\n50\r\nabc",
    "header-long": OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "headers-many": OK + b"X: 1\r\n" * 1000 + b"\r\n",
    "length-huge": OK + b"Content-Length: 99999999999\r\n\r\n",
    "cut": OK + LENGTH + b"\r\n" + IMAGE[:50],
    "nothing": b"",
}
# Sent a piece at a time, too soon for silence to end it, and whole long after the row's time.
DRIPS = {
    "drip-status": [bytes([byte]) for byte in OK * 4],
    "drip-headers": [OK, *[b"X-%d: 1\r\n" % k for k in range(60)]],
    "drip-line": [OK + b"X: ", *[b"x"] * 60],
    "drip-continue": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 60,
    "drip-body": [OK + LENGTH + b"\r\n", *[IMAGE[k : k + 16] for k in range(0, len(IMAGE), 16)]],
    "drip-handshake": [b"\x16\x03\x03\x10\x00\x02\x00\x0f\xfc", *[b"\x03"] * 60],
    "drip-chunks": [OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 60],
}
DRIP_S = 0.15


class RawServer:
    """Answers /NAME with exactly these bytes, then hangs up."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.over = threading.Event()
        self.finished: set[str] = set()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def url_of(self, name: str) -> str:
        """Where it gives that answer."""
        root = self.url.replace("http", "https") if name == "drip-handshake" else self.url
        return f"{root}/{name}"

    def _accept(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                connection = self._socket.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            request = b""
            while b"\r\n\r\n" not in request and request[:1] != b"\x16":
                request += connection.recv(4096)
            tls = request[:1] == b"\x16"  # a handshake's first byte
            name = "drip-handshake" if tls else request.split()[1].decode().strip("/")
            if name == "silent":
                self.over.wait(60)
            for piece in DRIPS.get(name, ()):
                connection.sendall(piece)
                if self.over.wait(DRIP_S):
                    return
            self.finished.add(name)
            connection.sendall(GOOD.get(name) or BAD.get(name, b""))

    def close(self) -> None:
        self.over.set()
        self._socket.close()


@pytest.fixture
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


LIMITS = FetchLimits(max_bytes=200_000, timeout_s=5, total_s=30, attempts=1, rate=0, private=True)


@pytest.mark.parametrize("name", GOOD)
def test_odd_answers_that_hold_an_image(server: RawServer, name: str) -> None:
    assert Fetcher(LIMITS, 1).fetch(f"{server.url}/{name}") == IMAGE


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_the_rows_error(
    server: RawServer, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FetchError) as caught:
        Fetcher(LIMITS, 1).fetch(f"{server.url}/{name}")
    assert "secret" not in str(caught.value)
    assert not capfd.readouterr().err, "no traceback of a library's"


@pytest.mark.parametrize("name", [*DRIPS, "silent"])
def test_what_drips_or_is_silent_ends_with_its_row(server: RawServer, name: str) -> None:
    """The server's answer is whole after 6 s or more, which nobody waits for."""
    with refused(FetchError, "0.8 s", "--row-timeout"):
        Fetcher(LIMITS._replace(timeout_s=1, total_s=0.8), 1).fetch(server.url_of(name))
    assert name not in server.finished


def test_errors_that_nobody_foresaw_are_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries raise anything over what servers send."""
    fetcher = Fetcher(LIMITS, 1)
    monkeypatch.setattr(fetcher, "_request", lambda *_: {}["no such key"])
    with refused(FetchError, "KeyError"):
        fetcher.fetch("http://127.0.0.1/")


def test_hostile_rows_among_good_ones(server: RawServer, tmp_path: Path) -> None:
    """The command ends, with every good picture and an error of its own for every other row."""
    names = [*GOOD, *BAD, *DRIPS, "silent"]
    urls = [server.url_of(name) for name in names]
    urls += ["", "http://[", "http://user:secret@127.0.0.1/", "ftp://user:secret@h/x", "x" * 9000,
             "http://a..b/", "http://\x00/", "//127.0.0.1/x",
             "http://127.0.0.1:99999/"]  # fmt: skip
    rows = ["url", *(f'"{url}"' for url in urls)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    words = ["shard", str(tmp_path / "t.csv"), str(tmp_path / "out"), "--kind", "urls",
             "--allow-private", "--rate", "0", "--validation-share", "0", "--workers", "1",
             "--timeout", "4", "--row-timeout", "4", "--attempts", "1", "--connections", "64",
             "--max-bad-share", "0.95"]  # fmt: skip
    assert data_prep(words) == 0
    assert load_manifest(open_storage(str(tmp_path / "out/train"))).info.num_samples == len(GOOD)
    text = (tmp_path / "out/fetched/ledger/000000.json").read_text()
    assert "secret" not in text
    ledger = json.loads(text)["rows"]
    assert ["sha256" in row for row in ledger] == [k < len(GOOD) for k in range(len(urls))]
