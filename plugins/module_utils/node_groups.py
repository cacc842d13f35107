"""One model on several hosts: SGLang's own multi-node serving (--nnodes, --node-rank, --dist-init-addr).

Source: sglang 0.5.19 ``srt/entrypoints/engine.py`` (Engine._launch_subprocesses): each host runs an equal part of the
tensor-parallel ranks. The first one, rank 0, serves; the others answer /health and no requests, once their ranks are up
(``launch_dummy_health_check_server`` of ``srt/utils/common.py``), and end when a rank of theirs ends. Pure functions;
those that a host needs run under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# What differs between the hosts of a group by nature, or follows from the rest.
OWN_OPTIONS = ("--node-rank", "--host", "--dist-init-addr", "--nccl-init-addr")
OWN_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "SGLANG_HOST_IP")


# The ranks meet at one of so many ports.
MEETING_PORTS = 1000


class NodeGroup(NamedTuple):
    """The hosts that run a service together, seen from one of them. ``port``: the first at which they may meet."""

    name: str
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    rank: int
    port: int
    interface: str

    def rendezvous(self, content: str) -> str:
        """Where the ranks meet: the address of the first host, and a port that follows from what they run.

        So ranks of two releases never find each other, as they might while one host has the new one already.
        """
        return f"{self.addresses[0]}:{self.port + zlib.crc32(content.encode()) % MEETING_PORTS}"

    @property
    def address(self) -> str:
        return self.addresses[self.rank]

    def environment(self) -> dict[str, str]:
        """The interface and the address that NCCL, Gloo and SGLang use between hosts. Left alone, Gloo takes what the
        host's name resolves to, which on Debian is the loopback interface."""
        told = {"SGLANG_HOST_IP": self.address}
        if self.interface:
            told |= {"NCCL_SOCKET_IFNAME": f"={self.interface}", "GLOO_SOCKET_IFNAME": self.interface}
        return told

    def entry(self, rendezvous: str) -> dict[str, Any]:
        """As in plan.json."""
        return {
            "group": self.name,
            "hosts": list(self.hosts),
            "addresses": list(self.addresses),
            "rank": self.rank,
            "rendezvous": rendezvous,
        }


def answers_requests(service: Mapping[str, Any]) -> bool:
    """Whether a planned service takes requests on its host: of those on several hosts only the first one does."""
    return (service.get("nodes") or {}).get("rank", 0) == 0


def shared_services(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The services of a plan that run on several hosts."""
    return [service for service in plan["services"] if service.get("nodes")]


def interface_of(facts: Mapping[str, Any], address: str) -> str:
    """The interface of gpu_host_facts that has the address; empty where none has."""
    return next((link["interface"] for link in facts.get("network") or [] if address in link["addresses"]), "")


def addresses_of_others(plan: Mapping[str, Any]) -> list[str]:
    """Addresses of the hosts with which this one shares services."""
    nodes = [service["nodes"] for service in shared_services(plan)]
    others = (address for node in nodes for rank, address in enumerate(node["addresses"]) if rank != node["rank"])
    return list(dict.fromkeys(others))


def group_problems(
    host: str,
    plans: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
    together: Sequence[str],
    forks: int,
) -> list[str]:
    """Why the services that this host shares with others would not come up, each as a sentence.

    ``plans`` and ``facts`` (gpu_host_facts) by host, ``together``: the hosts that start at the same time, as far as
    ``forks`` reach. Each host is compared with the first of its group, so that one that differs is named by itself.
    """
    problems = []
    sharing = [other for other in together if shared_services(plans.get(other) or {"services": []})]
    if len(sharing) > forks:
        problems.append(
            f"{len(sharing)} hosts of this batch run services together and wait for each other, and Ansible works on "
            f"{forks} at a time; give it --forks {len(sharing)} at least"
        )
    for service in shared_services(plans[host]):
        hosts = service["nodes"]["hosts"]
        apart = [other for other in hosts if other not in together]
        if apart:
            problems.append(
                f"{service['name']} runs on {', '.join(hosts)} together, and {', '.join(apart)} would not start with "
                f"{host}; start them in one batch (serial) of one run, each planned without an error"
            )
            continue
        first = hosts[0]
        problems += [
            f"{service['name']} on {host} and {first}: {difference}"
            for difference in _differences(service, plans[host], plans[first], facts.get(host), facts.get(first))
        ]
    return problems


def _differences(
    service: Mapping[str, Any],
    plan: Mapping[str, Any],
    first_plan: Mapping[str, Any],
    facts: Mapping[str, Any] | None,
    first_facts: Mapping[str, Any] | None,
) -> list[str]:
    named = (other for other in shared_services(first_plan) if other["name"] == service["name"])
    first = next(named, None)
    if first is None:
        return [f"{first_plan['host']} has no such service"]
    pairs = {
        "GPUs": (_kinds(plan, service), _kinds(first_plan, first)),
        "driver": (_driver(facts), _driver(first_facts)),
        "engine": tuple(f"{one['engine']} {one['engine_version']}" for one in (service, first)),
        "image": (service["image"], first["image"]),
        "model": (service["model"], first["model"]),
        "hosts": tuple(", ".join(one["nodes"]["hosts"]) for one in (service, first)),
    }
    found = [f"{what} {here}, not {there}" for what, (here, there) in pairs.items() if here != there]
    if found:
        return found
    here, there = _options(service), _options(first)
    return [
        f"{option} {here.get(option, 'is missing')}, not {there.get(option, 'left out')}"
        for option in {**here, **there}
        if here.get(option) != there.get(option)
    ]


def _kinds(plan: Mapping[str, Any], service: Mapping[str, Any]) -> str:
    products = [gpu["product"] for gpu in plan["gpus"] if gpu["index"] in service["gpus"]]
    return f"{len(products)} × {products[0]}"


def _driver(facts: Mapping[str, Any] | None) -> str:
    return (((facts or {}).get("driver") or {}).get("loaded") or {}).get("version") or "unknown"


def _options(service: Mapping[str, Any]) -> dict[str, str]:
    """Arguments and variables that the ranks have to have in common."""
    arguments = dict(argument.partition("=")[::2] for argument in service["command"])
    told = {**arguments, **service["environment"]}
    return {name: value for name, value in told.items() if name not in (*OWN_OPTIONS, *OWN_VARIABLES)}


def batch_sizes(sizes: Sequence[Any], hosts: Sequence[str], groups: Sequence[Sequence[str]]) -> list[int]:
    """``serial`` as numbers of hosts, each batch made larger where it would part hosts of one group.

    ``sizes``: numbers or shares such as ``25%``, the last one repeated, as Ansible takes them.
    """
    last = {
        host: max(map(hosts.index, (m for m in group if m in hosts)), default=-1) for group in groups for host in group
    }
    batches, begin, number = [], 0, 0
    while begin < len(hosts):
        size = _size(sizes[min(number, len(sizes) - 1)], len(hosts)) if sizes else len(hosts)
        end = min(begin + size, len(hosts))
        reach = begin
        while reach < end:  # a host of a group takes the batch to that group's last host
            end = max(end, last.get(hosts[reach], -1) + 1)
            reach += 1
        batches.append(end - begin)
        begin, number = end, number + 1
    return batches


def _size(size: Any, hosts: int) -> int:
    """Ansible's rule (utils/helpers.py, pct_to_int): a share is rounded down, to one host at least; 0 is all hosts."""
    text = str(size).strip()
    if text.endswith("%"):
        return int(hosts * float(text[:-1]) / 100) or 1
    return int(text) or hosts
