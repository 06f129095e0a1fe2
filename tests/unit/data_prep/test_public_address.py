"""Which addresses the fetcher may connect to."""

import socket
import threading

import pytest

from gear_data_prep.sources import public_address
from gear_data_prep.sources.public_address import is_public, resolve

PUBLIC = (
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "192.0.1.1",
    "192.169.0.1",
    "100.128.0.1",
    "223.255.255.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82b::200e",
    "2001:4860:4860::8888",  # beside the block of protocol assignments
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",  # what DNS64 makes of a host that has IPv4 only
    "2002:808:808::1",
    "2a00:1450::5efe:8.8.8.8",
)
PRIVATE = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.10",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::224.0.0.1",
    "64:ff9b:1::10.0.0.1",
    "64:ff9b:1:a00:0:100::",  # the layout of RFC 6052 for this prefix
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001:0:a00:1::1",  # Teredo
    "2001:0:808:808::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "2002:7f00:1::1",
    "2a00:1450::5efe:10.0.0.1",
    "2a00:1450::200:5efe:192.168.1.1",
    "3fff::1",
    "4000::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_name_is_looked_up_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver takes its own time; a row has no more than its limit."""
    over = threading.Event()

    def wait(*_: object, **__: object) -> list:
        over.wait(60)
        return []

    monkeypatch.setattr(public_address.socket, "getaddrinfo", wait)
    with pytest.raises(TimeoutError):
        resolve("images.test", 80, 0.05)
    over.set()


def test_errors_of_the_resolver_come_through() -> None:
    with pytest.raises(socket.gaierror):
        resolve("no such host", 80, 30)
    with pytest.raises(UnicodeError):
        resolve("a" * 100, 80, 30)
    assert resolve("127.0.0.1", 80, 30)[0].address == ("127.0.0.1", 80)
    assert resolve("127.0.0.1", 80, 30)[0].family == socket.AF_INET
