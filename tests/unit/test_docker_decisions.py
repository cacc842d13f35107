"""Adopt, install or refuse: what the facts of a host and the wishes of its owner come to."""

import pytest
from ansible_collections.blackwell.serving.plugins.filter.docker_decisions import docker_plan, mirror_address

CE = dict.fromkeys(("docker-ce", "docker-ce-cli", "containerd.io"), "5:29.9.0-1~debian.12~bookworm")
HOLDER = {"id": "c1", "name": "qwen", "project": None}


def facts(system=("debian", "12"), version=None, compose=None, flavour=None, packages=None, holders=(), sources=()):
    return {
        "os": {"id": system[0], "version_id": system[1]},
        "docker": {"version": version, "compose_version": compose, "flavour": flavour},
        "packages": packages or {},
        "gpu_containers": list(holders),
        "apt_sources": list(sources),
    }


def plan(host, source="auto", version="", restart_allowed=False):
    return docker_plan(host, source=source, version=version, restart_allowed=restart_allowed)


@pytest.mark.parametrize(
    ("system", "source", "engine", "repository"),
    [
        (("debian", "12"), "auto", "docker-ce", True),
        (("debian", "13"), "auto", "docker.io", False),
        (("debian", "13"), "docker", "docker-ce", True),
        (("ubuntu", "24.04"), "auto", "docker-ce", True),
    ],
)
def test_a_host_without_docker_gets_one_that_is_new_enough(system, source, engine, repository):
    made = plan(facts(system), source)
    assert engine in made["packages"]
    assert "python3-venv" in made["packages"]
    assert (made["repository"], made["adopted"], made["refused"]) == (repository, False, "")
    assert engine in made["held"]
    assert "python3-venv" not in made["held"]


def test_the_distribution_is_refused_where_it_is_too_old():
    assert "Engine 26.1" in plan(facts(("debian", "12")), "distribution")["refused"]


def test_docker_that_is_there_stays_and_its_repository_is_left_alone():
    made = plan(
        facts(version="29.9.0", compose="5.5.0", flavour="docker-ce", packages=CE | {"docker-compose-plugin": "5"})
    )
    assert made["adopted"]
    assert not made["repository"]
    assert set(made["packages"]) == {*CE, "docker-compose-plugin", "python3-venv"}


def test_the_repository_that_the_role_set_up_stays_managed():
    host = facts(
        version="29.9.0", compose="5.5.0", flavour="docker-ce", packages=CE, sources=["blackwell-docker.sources"]
    )
    made = plan(host)
    assert (made["adopted"], made["repository"]) == (True, True)


def test_docker_of_the_distribution_is_not_replaced_by_dockers_own():
    host = facts(
        ("debian", "13"), "26.1.5", "2.26.1-4", "docker.io", {"docker.io": "26.1.5", "docker-compose": "2.26.1-4"}
    )
    made = plan(host, "docker")
    assert (made["adopted"], made["repository"], made["source"]) == (True, False, "distribution")


def test_a_missing_compose_is_added_from_where_docker_came_from_also_under_gpu_containers():
    made = plan(facts(version="29.9.0", flavour="docker-ce", packages=CE, holders=[HOLDER]))
    assert "docker-compose-plugin" in made["packages"]
    assert (made["adopted"], made["refused"]) == (False, "")


@pytest.mark.parametrize(
    ("flavour", "way_out"), [("docker-ce", "docker_engine_version"), ("docker.io", "apt-get remove")]
)
def test_a_docker_that_is_too_old_is_refused_with_the_way_out(flavour, way_out):
    made = plan(facts(version="20.10.24+dfsg1", compose="2.26.1", flavour=flavour, packages={flavour: "x"}))
    assert "20.10.24" in made["refused"]
    assert way_out in made["refused"]


def test_a_pin_upgrades_dockers_own_packages():
    old = dict.fromkeys(CE, "5:24.0.7-1~debian.12~bookworm")
    made = plan(facts(version="24.0.7", compose="2.26.1", flavour="docker-ce", packages=old), version="5:29.*")
    assert made["refused"] == ""
    assert made["repository"]
    assert {"name": "docker-ce", "version": "5:29.*"} in made["packages"]


def test_a_pin_is_refused_where_docker_is_the_distributions():
    assert "docker_engine_version" in plan(facts(("debian", "13")), version="5:29.*")["refused"]


def test_packages_do_not_change_under_gpu_containers_unless_allowed():
    old = dict.fromkeys(CE, "5:28.0.0-1~debian.12~bookworm")
    host = facts(version="28.0.0", compose="2.30.0", flavour="docker-ce", packages=old, holders=[HOLDER])
    assert "qwen" in plan(host, version="5:29.*")["refused"]
    assert plan(host, version="5:29.*", restart_allowed=True)["refused"] == ""
    assert plan(host)["refused"] == ""


def test_a_docker_from_no_package_is_used_as_it_is():
    made = plan(facts(version="29.9.0", compose="5.5.0"))
    assert made["packages"] == ["python3-venv"]
    assert "29.9.0" in made["note"]
    assert "Compose" in plan(facts(version="29.9.0"))["refused"]


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "http://mirror1:5000"),
        ({"ansible_host": "192.0.2.7"}, "http://192.0.2.7:5000"),
        ({"ansible_host": "192.0.2.7", "serving_fleet_address": "10.0.0.7"}, "http://10.0.0.7:5000"),
        ({"registry_mirror_port": 5001}, "http://mirror1:5001"),
    ],
)
def test_docker_asks_a_mirror_where_the_fleet_reaches_it(variables, address):
    assert mirror_address({"inventory_hostname": "mirror1", **variables}) == address
