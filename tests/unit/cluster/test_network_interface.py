"""gloo listens where a cluster knows the node, not where its host name points."""

import os
import socket
from typing import Any

import psutil
import pytest

from gear_dist.distributed import network_interface
from gear_dist.distributed.network_interface import find_interface, use_interface


class _Address:
    def __init__(self, address: str, family: Any = socket.AF_INET):
        self.address, self.family = address, family


@pytest.fixture
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a loopback, a slow network and a fast one, and no choice made by the user."""
    found = {
        "lo": [_Address("127.0.0.1")],
        "eth0": [_Address("10.0.0.7"), _Address("fe80::1%eth0", socket.AF_INET6)],
        "ib0": [_Address("10.0.0.77")],
    }
    monkeypatch.setattr(network_interface.psutil, "net_if_addrs", lambda: found)
    # So that what the test sets is gone afterwards.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


@pytest.mark.usefixtures("two_networks")
@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.7", "eth0"), ("10.0.0.77", "ib0"), ("fe80::1", "eth0"), ("10.0.0.8", None)],
)
def test_the_interface_of_an_address(address: str, name: str | None) -> None:
    assert find_interface(address) == name


def test_this_machine_has_a_loopback() -> None:
    name = find_interface("127.0.0.1")
    assert name is not None
    assert name in psutil.net_if_addrs()


@pytest.mark.usefixtures("two_networks")
def test_the_nodes_interface_is_used_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_interface("10.0.0.8")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    use_interface("10.0.0.77")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    use_interface("10.0.0.7")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.usefixtures("two_networks")
def test_a_ray_worker_does_so_before_torch_distributed_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = pytest.importorskip("gear_cluster.ray_train.worker")
    taken: list[bool] = []
    monkeypatch.setattr(worker, "take_sigterm", lambda: taken.append(True))
    monkeypatch.setattr(worker.ray.util, "get_node_ip_address", lambda: "10.0.0.77")
    worker.prepare_process()
    assert (taken, os.environ["GLOO_SOCKET_IFNAME"]) == ([True], "ib0")
