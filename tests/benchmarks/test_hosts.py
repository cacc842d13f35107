"""Converged runs on test hosts as a multiple of `ansible -m ping` on the same hosts. Only `make bench` runs this.

Roles of others that do a part of the same work are timed beside them: pytest --public-role DIRECTORY, once for each.
A file benchmark.yml there holds further keys of the play, such as vars, or pre_tasks with the tag prepare, which are
not timed; a directory collections there is searched for modules.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
LAB = REPO_ROOT / "molecule/lab"
SCENARIO = "bench"
PINGS = 3
HOSTS = (1, 10, 50)  # about 0.25 GiB each
WORDS = ("-e", "gpu_host_reboot_allowed=true", "--forks=25")


class Fleet(NamedTuple):
    """So many test hosts, each with a disk of its own."""

    count: int
    inventory: Path
    ping: float  # seconds

    def __str__(self) -> str:
        return f"{self.count} test host{'s' if self.count > 1 else ''}"


class Role(NamedTuple):
    """Somebody else's role, and a playbook that is that role alone."""

    name: str
    book: Path
    environment: dict[str, str]


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, LAB / "lab.py", *words], capture_output=True, text=True, check=False)


def start_host(name: str, *words: str) -> None:
    started = lab("up", name, "--scenario", SCENARIO, "--gpu", "rtx_5090", "--registry", *words)
    assert started.returncode == 0, started.stderr


def write_inventory(run_tool, path: Path, names: list[str]) -> Path:
    """The lab's inventory of these hosts, with the images and the first service that the scenarios have."""
    told = run_tool(LAB / "inventory.py", env={"LAB_SCENARIO": SCENARIO})
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    shared = yaml.safe_load((REPO_ROOT / "molecule/common/group_vars/serving.yml").read_text())
    variables = answer["all"]["vars"] | shared
    variables |= {
        "docker_engine_source": "docker",  # as roles of others have it
        "serving_services": shared["serving_services"][:1],
        "serving_output_dir": str(path.parent / "build"),
        "host_verification_output_dir": str(path.parent / "build"),
        "engine_image_lock_file": str(path.parent / "images.lock.yml"),
    }
    hosts = {name: answer["_meta"]["hostvars"][name] for name in names}
    path.write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
    return path


def run_book(run_tool, inventory: Path, book: str | Path, *words: str, **options) -> tuple[str, float]:
    """What the playbook said, which has to end well, and its seconds."""
    started = time.perf_counter()
    done = run_tool("ansible-playbook", book, "-i", inventory, *WORDS, *words, timeout=3600, **options)
    took = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout, took


def ping(run_tool, inventory: Path) -> float:
    """Seconds of a ping, with connections that are open."""
    times = []
    for _ in range(1 + PINGS):
        started = time.perf_counter()
        done = run_tool("ansible", "all", "-i", inventory, "-m", "ansible.builtin.ping", *WORDS, timeout=300)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stdout + done.stderr
    return statistics.median(times[1:])


def actions(said: str) -> int:
    """Of one host: what was run or skipped on it, by the recap."""
    return max(int(ok) + int(skipped) for ok, skipped in re.findall(r" ok=(\d+) .* skipped=(\d+)", said))


def report(timing, what: str, fleet: Fleet, said: str, took: float) -> None:
    assert said.count(" changed=0 ") == fleet.count, said[-4000:]
    told = f"{what}, {fleet}: {took / fleet.ping:.1f} × ping ({fleet.ping:.1f} s), {actions(said)} actions"
    timing(told, took, limit=1800)


@pytest.fixture(scope="module")
def public_roles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Role]:
    found = []
    for given in request.config.getoption("--public-role"):
        role = Path(given).resolve()
        own = role / "benchmark.yml"
        play = {"hosts": "all", "become": True, "roles": [str(role)]}
        play |= yaml.safe_load(own.read_text()) if own.exists() else {}
        book = tmp_path_factory.mktemp("role") / f"{role.name}.yml"
        book.write_text(yaml.safe_dump([play]))
        environment = {
            "ANSIBLE_INJECT_FACT_VARS": "true",  # most roles count on it
            "ANSIBLE_COLLECTIONS_PATH": f"{role / 'collections'}:.collections",
        }
        found.append(Role(role.name, book, environment))
    return found


@pytest.fixture(scope="module")
def origin(run_tool, public_roles: list[Role], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a test host on which provision.yml and the roles of others have done their work."""
    if (answer := lab("status")).returncode:
        pytest.skip(answer.stderr.strip())
    start_host("origin")
    inventory = write_inventory(run_tool, tmp_path_factory.mktemp("origin") / "hosts.json", ["origin"])
    run_book(run_tool, inventory, "playbooks/provision.yml")
    for role in public_roles:
        run_book(run_tool, inventory, role.book, env=role.environment)
    yield "origin"
    lab("down", "--all", "--scenario", SCENARIO)


@pytest.fixture(scope="module", params=HOSTS)
def fleet(request: pytest.FixtureRequest, origin: str, run_tool, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Copies of the provisioned host, which have run site.yml: each has a simulated engine, from the lab's registry."""
    names = [f"host{number}" for number in range(request.param)]
    for name in names:
        start_host(name, "--like", origin)
    inventory = write_inventory(run_tool, tmp_path_factory.mktemp("fleet") / "hosts.json", names)
    run_book(run_tool, inventory, "site.yml")
    return Fleet(len(names), inventory, ping(run_tool, inventory))


def test_converged_provision_against_ping(fleet: Fleet, run_tool, timing):
    report(timing, "converged provision.yml", fleet, *run_book(run_tool, fleet.inventory, "playbooks/provision.yml"))


def test_converged_site_against_ping(fleet: Fleet, run_tool, timing):
    report(timing, "converged site.yml", fleet, *run_book(run_tool, fleet.inventory, "site.yml"))


def test_public_roles_against_ping(fleet: Fleet, public_roles: list[Role], run_tool, timing):
    """Each role alone, on hosts where it has nothing left to do."""
    if not public_roles:
        pytest.skip("no --public-role")
    for role in public_roles:
        done = run_book(run_tool, fleet.inventory, role.book, "--skip-tags=prepare", env=role.environment)
        report(timing, f"converged role {role.name}", fleet, *done)
