"""Who may reach the ports of a host's services: the rules read one by one, and what is refused before."""

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.fleet_firewall import rules
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_decisions import (
    GatewayRefused,
    firewall_sources,
)


def verdict(text: str, port: int, source: str, interface: str = "eth0", local: bool = True, reply: bool = False) -> str:
    """What the chain says of a packet: the rules are read one by one, as the kernel does it."""
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        members = (
            [word.strip('",') for word in words[words.index("{") + 1 : -2]] if "{" in words and "}" in words else []
        )
        if line.startswith("iifname"):
            hit = interface in line if not members else any(interface.startswith(name.rstrip("*")) for name in members)
        elif line.startswith("ct direction reply"):
            hit = reply
        elif line.startswith("fib daddr type != local"):
            hit = not local
        elif line.startswith("tcp dport !="):
            hit = str(port) not in members
        elif line.startswith(("ip saddr", "ip6 saddr")):
            hit = source in members
        else:
            hit = line == "counter drop"
        if hit:
            return words[-1]
    return "none"


def test_only_the_gateway_reaches_a_service():
    text = rules([30002, 30001], ["10.0.0.10", "fd00::10"], False)
    assert verdict(text, 30001, "10.0.0.10") == "accept"
    assert verdict(text, 30002, "fd00::10") == "accept"
    assert verdict(text, 30001, "10.0.0.99") == "drop"
    assert verdict(text, 22, "10.0.0.99") == "accept"
    assert verdict(text, 30001, "10.0.0.99", interface="lo") == "accept"
    assert verdict(text, 30001, "10.0.0.99", local=False) == "accept"  # it goes through the host to elsewhere
    assert verdict(text, 30001, "10.0.0.99", reply=True) == "accept"  # an answer to what the host itself asked


def test_containers_of_the_host_get_in_where_it_is_a_gateway_or_a_monitor():
    for allowed, expected in ((False, "drop"), (True, "accept")):
        assert verdict(rules([30001], [], allowed), 30001, "172.18.0.2", interface="br-34a3") == expected


def test_the_file_replaces_the_table_whether_it_is_there_or_not():
    assert rules([30001], [], False).splitlines()[1:3] == [
        "table inet blackwell_serving",
        "delete table inet blackwell_serving",
    ]


def test_the_order_in_which_things_are_declared_makes_no_difference():
    one = rules([30001, 30002], ["10.0.0.2", "10.0.0.1", "10.1.0.0/16"], False)
    assert one == rules([30002, 30001, 30001], ["10.1.0.0/16", "10.0.0.1", "10.0.0.2"], False)


def test_a_host_is_let_in_by_its_fleet_address_or_else_its_own():
    peers = {"gw1": ("10.0.0.1", "192.0.2.1"), "gw2": ("", "192.0.2.2"), "10.0.0.3": ("", "")}
    assert firewall_sources(peers) == ["10.0.0.1", "10.0.0.3", "192.0.2.2"]


def test_a_name_is_refused_with_the_variable_to_set():
    with pytest.raises(GatewayRefused, match=r"gw1: gw1\.example\.com is no address.*serving_fleet_address of gw1"):
        firewall_sources({"gw1": ("", "gw1.example.com")})
