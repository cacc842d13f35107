"""Whether another host is there, asked over TCP: with sockets of this machine in place of other hosts."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_host_that_accepts_is_there(run_module, listener):
    assert run_module("hosts_reachable", addresses=["127.0.0.1"], port=listener)["unreachable"] == {}


def test_a_host_that_refuses_is_there(run_module, listener):
    """127.0.0.2 listens on nothing, and says so."""
    assert run_module("hosts_reachable", addresses=["127.0.0.1", "127.0.0.2"], port=listener)["unreachable"] == {}


def test_a_host_that_never_answers_fails_with_its_address(run_module):
    """A listener whose queue is full drops what comes, as a firewall does."""
    with socket.socket() as server:
        server.bind(("127.0.0.3", 0))
        server.listen(0)
        port = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.3", port))
        result = run_module("hosts_reachable", addresses=["127.0.0.1", "127.0.0.3"], port=port, timeout=1)
        for one in waiting:
            one.close()
    assert result["failed"]
    assert result["unreachable"] == {"127.0.0.3": "no answer within 1 s"}
    assert f"TCP port {port} cannot be reached: 127.0.0.3: no answer" in result["msg"]


def test_an_address_to_which_there_is_no_way_fails_with_the_reason(run_module):
    result = run_module("hosts_reachable", addresses=["255.255.255.255"], port=20000, timeout=2)
    assert result["failed"]
    assert result["unreachable"]["255.255.255.255"]
