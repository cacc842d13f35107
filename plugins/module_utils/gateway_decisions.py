"""What a gateway gets: the addresses of the GPU hosts' services, and its keys. Runs on the control node."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

ANY = ("0.0.0.0", "::")


class GatewayRefused(Exception):
    """What was declared cannot be; the message says why and what to do."""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def address_of(host: str, gateway: str, bind_address: str, fleet_address: str) -> str:
    """The address at which `gateway` reaches a service of `host` that listens on `bind_address`."""
    if host == gateway:
        return "127.0.0.1" if bind_address in ANY else bind_address
    if bind_address in ANY:
        if not fleet_address:
            raise GatewayRefused(
                f"{host}: its services listen on every address, and nothing says at which one the gateway {gateway} "
                f"reaches them: set serving_fleet_address of {host}"
            )
        return fleet_address
    if _is_loopback(bind_address):
        raise GatewayRefused(
            f"{host}: its services listen on {bind_address} alone, where the gateway {gateway} cannot reach them: set "
            f"serving_fleet_address of {host} to a private address of it, and deploy it"
        )
    return bind_address


def gateway_services(
    hosts: Mapping[str, Iterable[Mapping[str, Any]]], gateway: str, fleet_addresses: Mapping[str, str]
) -> dict[str, list[dict[str, str]]]:
    """What each host serves, as the modules gateway_stack and gateway_workers take it.

    `hosts`: services of plan.json by host.
    """
    found = {}
    for host, services in hosts.items():
        found[host] = [
            {
                "service": service["name"],
                "url": _url(
                    address_of(host, gateway, service["bind_address"], fleet_addresses.get(host) or ""), service["port"]
                ),
                "model": service["served_name"],
            }
            for service in services
        ]
    return found


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def firewall_sources(peers: Mapping[str, Iterable[str]]) -> list[str]:
    """Addresses of the hosts that may reach the services. `peers`: by host, its fleet address and its own, if given.

    The first of these and of the host's name has to be an address, as a firewall knows no names.
    """
    found = []
    for host, candidates in peers.items():
        given = next(candidate for candidate in [*candidates, host] if candidate)
        try:
            found.append(str(ipaddress.ip_address(given)))
        except ValueError:
            raise GatewayRefused(
                f"{host}: {given} is no address, and the firewall of the GPU hosts needs one to let {host} in: set "
                f"serving_fleet_address of {host}"
            ) from None
    return sorted(set(found))


# ---- keys ----

KEY_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{20,200}")
KEY_OPTIONS = ("name", "key", "requests_per_minute", "burst", "parallel")


def gateway_keys(declared: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Names and limits, which may be shown, and the text of keys.conf, which may not. A message never holds a key."""
    names: list[dict[str, Any]] = []
    lines: list[str] = []
    seen: dict[str, str] = {}
    for number, item in enumerate(declared, 1):
        name = _key_name(item, number)
        if name in [other["name"] for other in names]:
            raise GatewayRefused(
                f"gateway_api_keys: the name {name} stands there twice; for a second key of {name}, make its key a list"
            )
        unknown = sorted(set(item) - set(KEY_OPTIONS))
        if unknown:
            raise GatewayRefused(
                f"gateway_api_keys, {name}: there is no {unknown[0]}; there are {', '.join(KEY_OPTIONS)}"
            )
        keys = item.get("key")
        for key in [keys] if isinstance(keys, str) else keys or []:
            if not isinstance(key, str) or not KEY.fullmatch(key):
                raise GatewayRefused(
                    f"gateway_api_keys, {name}: a key has 20 to 200 characters of A-Z a-z 0-9 . _ ~ + / = - (one is "
                    f"{len(str(key))} long); `openssl rand -hex 24` makes one"
                )
            if key in seen:
                raise GatewayRefused(f"gateway_api_keys: {seen[key]} and {name} have the same key")
            seen[key] = name
            # A regular expression, because nginx compares plain strings of a map without regard to case.
            lines.append(f'"~^(?i:bearer) +{re.sub("[.+]", lambda found: f"[{found[0]}]", key)}$" "{name}";\n')
        if not keys:
            raise GatewayRefused(f"gateway_api_keys, {name}: it has no key")
        rate = _limit(item, name, "requests_per_minute")
        names.append(
            {
                "name": name,
                "requests_per_minute": rate,
                "burst": _limit(item, name, "burst") or max(1, rate // 6),
                "parallel": _limit(item, name, "parallel"),
                "retry_after": math.ceil(60 / rate) if rate else 1,
            }
        )
    return {"names": names, "file": "".join(lines)}


def _key_name(item: Any, number: int) -> str:
    name = item.get("name") if isinstance(item, Mapping) else None
    if not isinstance(name, str) or not KEY_NAME.fullmatch(name):
        raise GatewayRefused(
            f"gateway_api_keys, entry {number}: it needs a name of lower-case letters, digits and underscores, which "
            "logs show in place of the key"
        )
    return name


def _limit(item: Mapping[str, Any], name: str, option: str) -> int:
    """0 where there is none."""
    value = item.get(option) or 0
    if isinstance(value, bool) or not re.fullmatch("[0-9]+", str(value)):
        raise GatewayRefused(f"gateway_api_keys, {name}: {option} is a number of at least 1, not {value!r}")
    return int(value)
