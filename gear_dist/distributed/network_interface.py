"""The network interface that torch.distributed's CPU collectives (gloo) use on a cluster's node."""

import os

import psutil


def find_interface(address: str) -> str | None:
    """Name of this machine's interface with an IP address; None: no interface has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return name
    return None


def use_interface(address: str) -> None:
    """Let gloo listen where the node's address is, unless GLOO_SOCKET_IFNAME names an interface.

    By itself it listens at what the host's name resolves to, which on a node with several networks
    is any of them, and on many Linux installations loopback, where no other node connects. Before
    the first process group.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := find_interface(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
