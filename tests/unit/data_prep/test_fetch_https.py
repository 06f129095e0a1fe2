"""Fetching over https: the host's name is what is asked and checked, its vetted address connected.

The authority, its certificates and the servers are made here; the names of the hosts are what this
module's resolver says.
"""

import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_data_prep.sources import public_address
from gear_data_prep.sources.fetch import Fetcher, FetchError, FetchLimits
from gear_dist.data.manifest import load_manifest
from gear_dist.storage.open import open_storage
from image_files import encode
from refusals import refused

HOST = "images.test"
LIMITS = FetchLimits(timeout_s=20, total_s=60, attempts=1, rate=0)


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def make_authority(folder: Path, name: str) -> Path:
    openssl("req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key",
            "-out", folder / f"{name}.pem", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    return folder / f"{name}.pem"


def make_certificate(authority: Path, name: str, *names: str) -> Path:
    """A certificate for hosts, with its key in the same file."""
    folder = authority.parent
    key, request, extra = (folder / f"{name}.{kind}" for kind in ("key", "csr", "ext"))
    openssl("req", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    extra.write_text("subjectAltName=" + ",".join(names))
    openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey",
            authority.with_suffix(".key"), "-CAcreateserial", "-days", "2", "-extfile", extra,
            "-out", folder / f"{name}.crt")  # fmt: skip
    path = folder / f"{name}.both"
    path.write_text((folder / f"{name}.crt").read_text() + key.read_text())
    return path


class Handler(http.server.BaseHTTPRequestHandler):
    """/image/3 is a picture, /to/URL a redirect."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])
        word, _, rest = self.path.strip("/").partition("/")
        data = encode(int(rest)) if word == "image" else b""
        self.send_response(200 if word == "image" else 302)
        if word == "to":
            self.send_header("Location", unquote(rest))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """On loopback; knows what it was asked for."""

    def __init__(self, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hosts: list[str] = []
        self.server_names: list[str | None] = []
        self.context = None
        if certificate is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate)
            self.context.sni_callback = lambda _, name, __: self.server_names.append(name)

    def finish_request(self, request: socket.socket, address: object) -> None:
        """The handshake belongs to the connection's thread; clients that refuse end it."""
        try:
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True)
            super().finish_request(request, address)
        except OSError:
            pass
        finally:
            request.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def certificates(authority: Path) -> dict[str, Path | None]:
    stranger = make_authority(authority.parent, "stranger")
    return {
        "good": make_certificate(authority, "good", f"DNS:{HOST}", "IP:127.0.0.1"),
        "other": make_certificate(authority, "other", "DNS:other.test", "IP:127.0.0.1"),
        "untrusted": make_certificate(stranger, "untrusted", f"DNS:{HOST}"),
        "plain": None,
    }


@pytest.fixture
def servers(certificates: dict[str, Path | None]) -> Iterator[dict[str, Server]]:
    running = {name: Server(path) for name, path in certificates.items()}
    threads = [threading.Thread(target=s.serve_forever, args=(0.05,)) for s in running.values()]
    for thread in threads:
        thread.start()
    yield running
    for server in running.values():
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.fixture
def lookups(authority: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trusts the authority, resolves names of .test to loopback; the names that were looked up."""
    found: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: object, **options: object) -> list:
        found.append(host)
        return real("127.0.0.1" if host.endswith(".test") else host, *arguments, **options)

    monkeypatch.setattr(public_address.socket, "getaddrinfo", look_up)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    return found


@pytest.fixture
def open_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 counts as public, so that all guards are in place on the way to it."""
    real = public_address.is_public
    monkeypatch.setattr(public_address, "is_public", lambda ip: ip == "127.0.0.1" or real(ip))


@pytest.mark.parametrize(("scheme", "kind"), [("https", "good"), ("http", "plain")])
@pytest.mark.parametrize("private", [True, False])
def test_the_name_is_asked_and_the_vetted_address_connected(
    servers: dict[str, Server],
    lookups: list[str],
    open_loopback: None,
    scheme: str,
    kind: str,
    private: bool,
) -> None:
    """Three rows of one host: one lookup and one connection, and the name in every request."""
    server = servers[kind]
    fetcher = Fetcher(LIMITS._replace(private=private), 1)
    root = f"{scheme}://{HOST}:{server.server_port}"
    for number in range(3):
        assert fetcher.fetch(f"{root}/image/{number}") == encode(number)
    assert server.hosts == [f"{HOST}:{server.server_port}"] * 3
    assert lookups == [HOST], "looked up once: a second answer could be another"
    assert server.server_names == ([HOST] if scheme == "https" else [])


def test_an_ip_address_that_its_certificate_names(
    servers: dict[str, Server], lookups: list[str]
) -> None:
    url = f"https://127.0.0.1:{servers['good'].server_port}/image/1"
    assert Fetcher(LIMITS._replace(private=True), 1).fetch(url) == encode(1)


def test_redirects_change_scheme_and_host(
    servers: dict[str, Server], lookups: list[str], open_loopback: None
) -> None:
    target = f"https://{HOST}:{servers['good'].server_port}/image/5"
    start = f"http://www.test:{servers['plain'].server_port}/to/{target}"
    assert Fetcher(LIMITS, 1).fetch(start) == encode(5)
    assert lookups == ["www.test", HOST]


@pytest.mark.parametrize("target", ["https://[::1]:{}/image/1", "https://[fec0::1]:{}/image/1"])
def test_every_hop_is_vetted(
    servers: dict[str, Server], lookups: list[str], open_loopback: None, target: str
) -> None:
    port = servers["good"].server_port
    with refused(FetchError, "host", "--allow-private"):
        Fetcher(LIMITS, 1).fetch(f"https://{HOST}:{port}/to/{target.format(port)}")


def test_a_host_with_one_private_address_is_refused(
    servers: dict[str, Server], open_loopback: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = servers["plain"].server_port
    answers = [(socket.AF_INET, 1, 6, "", (ip, port)) for ip in ("127.0.0.1", "10.0.0.1")]
    monkeypatch.setattr(public_address.socket, "getaddrinfo", lambda *_, **__: answers)
    with refused(FetchError, "host", "--allow-private"):
        Fetcher(LIMITS, 1).fetch(f"http://{HOST}:{port}/image/1")
    assert not servers["plain"].hosts


def test_the_next_address_is_tried_where_one_does_not_answer(
    servers: dict[str, Server], lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = servers["plain"].server_port
    # Nothing listens there: a socket that is bound and not listening refuses.
    with socket.socket() as silent:
        silent.bind(("127.0.0.2", 0))
        dead = (socket.AF_INET, 1, 6, "", silent.getsockname())
        answers = [dead, (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(public_address.socket, "getaddrinfo", lambda *_, **__: answers)
        fetcher = Fetcher(LIMITS._replace(private=True), 1)
        assert fetcher.fetch(f"http://{HOST}:{port}/image/2") == encode(2)


def test_a_table_of_https_urls(
    servers: dict[str, Server],
    lookups: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the command: trusted rows arrive, the others are refused one by one, and count."""
    rows = [("good", k) for k in range(6)] + [("other", 6), ("untrusted", 7)]
    urls = [f"https://{HOST}:{servers[kind].server_port}/image/{k}" for kind, k in rows]
    (tmp_path / "t.csv").write_text("\n".join(["url", *urls]))
    words = ["shard", str(tmp_path / "t.csv"), str(tmp_path / "out"), "--kind", "urls",
             "--allow-private", "--rate", "0", "--validation-share", "0", "--workers", "1",
             "--timeout", "20"]  # fmt: skip
    assert data_prep(words) == 3
    assert "--max-bad-share" in capsys.readouterr().err
    assert data_prep([*words, "--max-bad-share", "0.25"]) == 0
    assert load_manifest(open_storage(str(tmp_path / "out/train"))).info.num_samples == 6
    ledger = json.loads((tmp_path / "out/fetched/ledger/000000.json").read_text())["rows"]
    assert ["sha256" in row for row in ledger] == [True] * 6 + [False] * 2
    assert all("certificate" in row["error"] for row in ledger[6:])
    assert not servers["other"].hosts
    assert not servers["untrusted"].hosts
