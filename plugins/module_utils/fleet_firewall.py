"""The firewall of a GPU host: who may reach the ports of its services.

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


def rules(ports: Iterable[int], sources: Iterable[str], local_containers: bool) -> str:
    """The file that nft reads; loading it replaces the table in one step."""
    networks = [ipaddress.ip_network(source, strict=False) for source in sources]
    lines = [
        f"table {TABLE} {{",
        "    chain services {",
        "        type filter hook prerouting priority mangle; policy accept;",
        '        iifname "lo" accept',
        "        ct direction reply accept",
        "        fib daddr type != local accept",
        f"        tcp dport != {_set(str(port) for port in sorted(set(ports)))} accept",
    ]
    if local_containers:
        lines.append('        iifname { "docker0", "br-*" } accept')
    for version, word in ((4, "ip"), (6, "ip6")):
        found = sorted({network for network in networks if network.version == version})
        if found:
            lines.append(f"        {word} saddr {_set(_text(network) for network in found)} accept")
    lines += ["        counter drop", "    }", "}", ""]
    return HEAD + "\n".join(lines)


def _set(items: Iterable[str]) -> str:
    return "{ " + ", ".join(items) + " }"


def _text(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)
