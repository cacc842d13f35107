"""The firewall of a GPU host: who may reach the ports of its services and of its exporters.

A table of its own, whose chain sees a packet before Docker's rules rewrite its address: what goes to a port that Docker
publishes never comes to the chain INPUT. Docker leaves tables of others alone, also when it starts anew, whether its
own rules are made with iptables or with nftables. Sources: docs.docker.com/engine/network/firewall-nftables (own tables
and their priorities) and packet-filtering-firewalls; nftables wiki, "Netfilter hooks" (mangle -150, dstnat -100).

Runs on the host, Python 3.9 or newer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

TABLE = "inet blackwell_serving"
HEAD = f"# Written by blackwell.serving; change the inventory, not this file.\ntable {TABLE}\ndelete table {TABLE}\n"


def rules(
    ports: Iterable[int],
    sources: Iterable[str],
    local_containers: bool,
    monitored_ports: Iterable[int] = (),
    monitors: Iterable[str] = (),
) -> str:
    """The file that nft reads; loading it replaces the table in one step. No `sources` reach `monitored_ports`."""
    monitored = sorted(set(monitored_ports))
    lines = [
        f"table {TABLE} {{",
        "    chain services {",
        "        type filter hook prerouting priority mangle; policy accept;",
        '        iifname "lo" accept',
        "        ct direction reply accept",
        "        fib daddr type != local accept",
        f"        tcp dport != {_ports({*ports, *monitored})} accept",
    ]
    if monitored:
        lines += [f"        tcp dport {_ports(monitored)} {line}" for line in [*_accepted(monitors), "counter drop"]]
    if local_containers:
        lines.append('        iifname { "docker0", "br-*" } accept')
    lines += [f"        {line}" for line in _accepted(sources)]
    lines += ["        counter drop", "    }", "}", ""]
    return HEAD + "\n".join(lines)


def _accepted(sources: Iterable[str]) -> list[str]:
    networks = {ipaddress.ip_network(source, strict=False) for source in sources}
    found = []
    for version, word in ((4, "ip"), (6, "ip6")):
        texts = [_text(network) for network in sorted(n for n in networks if n.version == version)]
        if texts:
            found.append(f"{word} saddr {_set(texts)} accept")
    return found


def _ports(ports: Iterable[int]) -> str:
    return _set(str(port) for port in sorted(ports))


def _set(items: Iterable[str]) -> str:
    return "{ " + ", ".join(items) + " }"


def _text(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)
