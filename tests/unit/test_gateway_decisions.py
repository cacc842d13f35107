"""Addresses of services as a gateway reaches them, and the keys of its users."""

import re

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_decisions import (
    GatewayRefused,
    gateway_keys,
    gateway_services,
)

KEY = "sk-0123456789abcdef0123"


def service(bind: str) -> dict:
    return {"name": "qwen", "served_name": "qwen-model", "bind_address": bind, "port": 30002}


def url(bind: str, gateway: str = "gw", fleet: str = "") -> str:
    (found,) = gateway_services({"box": [service(bind)]}, gateway, {"box": fleet})["box"]
    return found["url"]


@pytest.mark.parametrize(
    ("bind", "gateway", "fleet", "address"),
    [
        ("10.0.0.1", "gw", "10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "gw", "10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "box", "", "127.0.0.1"),
        ("127.0.0.1", "box", "", "127.0.0.1"),
        ("10.0.0.1", "box", "10.0.0.1", "10.0.0.1"),
        ("fd00::1", "gw", "fd00::1", "[fd00::1]"),
    ],
)
def test_a_gateway_reaches_a_service_where_it_listens(bind, gateway, fleet, address):
    assert url(bind, gateway, fleet) == f"http://{address}:30002"


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
def test_a_service_out_of_reach_is_refused_with_the_variable_to_set(bind):
    with pytest.raises(GatewayRefused, match=r"box.*gw.*serving_fleet_address of box"):
        url(bind)


def names_by_key(keys: dict) -> dict:
    """What nginx's map does, for the patterns that we write."""
    return dict(re.findall(r'^"~(.*)" "(\w+)";$', keys["file"], re.MULTILINE))


def allowed(keys: dict, header: str) -> list[str]:
    return [name for pattern, name in names_by_key(keys).items() if re.search(pattern, header)]


def test_only_the_very_key_gets_in():
    keys = gateway_keys([{"name": "shop", "key": f"{KEY}.+/x"}, {"name": "desk", "key": [KEY, f"{KEY}old"]}])
    assert allowed(keys, f"Bearer {KEY}.+/x") == ["shop"]
    assert allowed(keys, f"bearer  {KEY}") == ["desk"]
    assert allowed(keys, f"Bearer {KEY}old") == ["desk"]
    for wrong in (KEY, f"Bearer {KEY}x", f"Bearer {KEY.upper()}", f"Bearer {KEY}zz/x", f"Basic {KEY}", "Bearer "):
        assert allowed(keys, wrong) == []


def test_limits_have_a_burst_and_say_when_to_come_back():
    (one, two) = gateway_keys(
        [{"name": "a", "key": KEY, "requests_per_minute": 40}, {"name": "b", "key": f"{KEY}b", "parallel": 2}]
    )["names"]
    assert (one["burst"], one["retry_after"], one["parallel"]) == (6, 2, 0)
    assert (two["requests_per_minute"], two["parallel"]) == (0, 2)


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ([{"key": KEY}], "entry 1: it needs a name"),
        ([{"name": "Shop", "key": KEY}], "entry 1: it needs a name"),
        (["secret-of-someone-000000"], "entry 1: it needs a name"),
        ([{"name": "a", "key": "short-secret"}], "12 long.*openssl rand"),
        ([{"name": "a", "key": f'{KEY}" "b'}], "a key has 20 to 200 characters"),
        ([{"name": "a"}], "a: it has no key"),
        ([{"name": "a", "key": KEY}, {"name": "a", "key": f"{KEY}2"}], "a stands there twice"),
        ([{"name": "a", "key": KEY}, {"name": "b", "key": KEY}], "a and b have the same key"),
        ([{"name": "a", "key": KEY, "rate": 5}], "there is no rate; there are name, key"),
        ([{"name": "a", "key": KEY, "parallel": "many"}], "parallel is a number of at least 1, not 'many'"),
        ([{"name": "a", "key": KEY, "requests_per_minute": -1}], "requests_per_minute is a number"),
    ],
)
def test_what_cannot_be_is_refused_and_no_key_is_shown(declared, problem):
    with pytest.raises(GatewayRefused, match=problem) as refusal:
        gateway_keys(declared)
    assert "secret" not in str(refusal.value)
    assert KEY not in str(refusal.value)
