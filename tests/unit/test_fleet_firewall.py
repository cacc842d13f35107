"""Who may reach the ports of a host's services: the rules read one by one, and what is refused before."""

import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.fleet_firewall import rules
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_decisions import (
    GatewayRefused,
    firewall_sources,
)


def verdict(text: str, port: int, source: str, interface: str = "eth0", local: bool = True, reply: bool = False) -> str:
    """What the chain says of a packet: the rules are read one by one, as the kernel does it."""
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        members = []
        if line.startswith("tcp dport {"):  # the rest of the line holds for these ports alone
            if str(port) not in line[: line.index("}")].replace(",", "").split():
                continue
            words = line[line.index("}") + 2 :].split()
            line = " ".join(words)
        if "{" in words and "}" in words:
            members = [word.strip('",') for word in words[words.index("{") + 1 : -2]]
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


def test_exporters_are_reached_by_monitors_alone_and_services_by_gateways_as_before():
    text = rules([30001], ["10.0.0.10", "10.0.0.20"], True, [9835, 9100], ["10.0.0.20", "fd00::20"])
    reached = {
        (port, source): verdict(text, port, source)
        for port in (9100, 9835, 30001, 22)
        for source in ("10.0.0.10", "10.0.0.20", "fd00::20", "10.0.0.99")
    }
    assert [key for key, said in reached.items() if said == "drop"] == [
        (9100, "10.0.0.10"),
        (9100, "10.0.0.99"),
        (9835, "10.0.0.10"),
        (9835, "10.0.0.99"),
        (30001, "fd00::20"),
        (30001, "10.0.0.99"),
    ]
    assert set(reached.values()) == {"accept", "drop"}
    assert verdict(text, 9100, "172.18.0.2", interface="br-34a3") == "drop"
    assert verdict(text, 9100, "10.0.0.99", interface="lo") == "accept"


def test_a_port_that_is_declared_for_both_is_for_monitors():
    text = rules([30001, 9100], ["10.0.0.10"], False, [9100], ["10.0.0.20"])
    assert (verdict(text, 9100, "10.0.0.10"), verdict(text, 9100, "10.0.0.20")) == ("drop", "accept")


def test_without_monitors_there_is_no_rule_of_theirs():
    assert rules([30001], ["10.0.0.10"], False, [], []) == rules([30001], ["10.0.0.10"], False)


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


@pytest.mark.parametrize(
    ("monitors", "ports", "reached_by"),
    [
        ([], [], []),
        (["watch"], [9100, 9835], ["10.0.0.20", "10.9.0.0/16"]),
        (["watch", "box"], [9100, 9835], ["10.0.0.11", "10.0.0.20", "10.9.0.0/16"]),
    ],
)
def test_the_role_opens_exporters_to_the_monitors_of_the_inventory(
    tmp_path: Path, repo_root: Path, ansible_playbook, monitors, ports, reached_by
):
    role = repo_root / "roles/serving_stack"
    hosts = {"box": "10.0.0.11", "gw": "10.0.0.10", "watch": "10.0.0.20"}
    inventory = {
        "all": {
            "hosts": {name: {"serving_fleet_address": address} for name, address in hosts.items()},
            "children": {
                "serving_gateways": {"hosts": {"gw": None}},
                "serving_monitors": {"hosts": dict.fromkeys(monitors)},
            },
        }
    }
    names = ("closed_ports", "sources", "monitored_ports", "monitors")
    shown = ", ".join(f"'{name}': __serving_stack_{name}" for name in names)
    play = {
        "hosts": "box",
        "gather_facts": False,
        "vars_files": [str(role / "defaults/main.yml"), str(role / "vars/main.yml")],
        "vars": {
            "role_path": str(role),
            "__serving_stack_firewalled": [{"name": "qwen", "port": 30002}],
        },
        "tasks": [
            {
                "ansible.builtin.copy": {
                    "content": "{{ {" + shown + "} | to_json }}",
                    "dest": str(tmp_path / "out.json"),
                },
                "delegate_to": "localhost",
            }
        ],
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = ansible_playbook(
        tmp_path / "play.yml", "-i", tmp_path / "hosts.yml", "-e", '{"serving_stack_firewall_sources": ["10.9.0.0/16"]}'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["closed_ports"], found["monitored_ports"], found["monitors"]) == ([30002], ports, reached_by)
    assert found["sources"] == [*sorted({"10.0.0.10", *(hosts[name] for name in monitors)}), "10.9.0.0/16"]
