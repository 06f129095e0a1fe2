"""Private-host (SSRF) guard: public IP check and DNS lookup with a timeout."""

import ipaddress
import socket
import threading
from concurrent.futures import Future
from typing import Any, NamedTuple

# The ipaddress module's own tables grow with Python's releases; these hold on all of them.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata server is here
        "192.88.99.0/24",  # relays of 6to4, withdrawn
        "168.63.129.16/32",  # Azure's wire server, which answers the machine itself only
        "64:ff9b:1::/48",  # NAT64 of a site, RFC 8215: where the IPv4 address lies is its own
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
        "fec0::/10",  # site-local, withdrawn
    )
)
# Gateways send these to the IPv4 address in them, and nothing else.
_CARRIERS = (ipaddress.ip_network("::ffff:0:0/96"), ipaddress.ip_network("64:ff9b::/96"))
_ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))
"""How an interface identifier begins that ends in an IPv4 address: RFC 5214."""


class SocketAddress(NamedTuple):
    """What a socket connects to."""

    family: int
    address: tuple[Any, ...]

    @property
    def is_public(self) -> bool:
        """Whether it belongs to the public internet."""
        return is_public(str(self.address[0]))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    One that holds another, to which a gateway may send it, is no more public than that one.

    Args:
        address: as text, with or without a scope (fe80::1%eth0).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _embedded(ip) if isinstance(ip, ipaddress.IPv6Address) else None
    if inner is not None and not is_public(str(inner)):
        return False
    if inner is not None and any(ip in network for network in _CARRIERS):
        return True
    odd = ip.is_multicast or ip.is_reserved or ip.is_unspecified or not ip.is_global
    return not odd and not any(ip in network for network in _REFUSED)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address holds."""
    if any(ip in network for network in _CARRIERS) or ip.packed[8:12] in _ISATAP:
        return ipaddress.IPv4Address(ip.packed[12:])
    return ip.sixtofour


def resolve(host: str, port: int, seconds: float) -> list[SocketAddress]:
    """The addresses of a host, in the system's order.

    Raises:
        TimeoutError: no answer within so many seconds.
        OSError, ValueError: as socket.getaddrinfo.
    """
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            answer.set_exception(error)

    # The system's resolver cannot be interrupted: a thread of its own is left behind where it
    # takes too long, and ends when the resolver gives up.
    threading.Thread(target=ask, daemon=True).start()
    return [SocketAddress(item[0], item[4]) for item in answer.result(max(0.0, seconds))]
