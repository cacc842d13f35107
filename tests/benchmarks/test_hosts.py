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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
LAB = REPO_ROOT / "molecule/lab"
SCENARIO = "bench"
PINGS = 3
# Names under which one test host is in the inventory: its own, and more that stand for as many hosts.
NAMES = {"one": 1, "ten": 10, "fifty": 50}
# For the whole of site.yml each host has a plan of its own, so these are test hosts of their own: about 0.25 GiB each.
HOSTS = (1, 10, 50)
FORKS = "--forks=25"


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, LAB / "lab.py", *words], capture_output=True, text=True, check=False)


def start_host(name: str, *words: str) -> None:
    started = lab("up", name, "--scenario", SCENARIO, "--gpu", "rtx_5090", "--registry", *words)
    assert started.returncode == 0, started.stderr


@pytest.fixture(scope="module")
def lab_host() -> Iterator[str]:
    """Name of a virgin test host; the lab's inventory knows how to reach it."""
    if (answer := lab("status")).returncode:
        pytest.skip(answer.stderr.strip())
    start_host("timed")
    yield "timed"
    lab("down", "--all", "--scenario", SCENARIO)


def lab_inventory(run_tool) -> tuple[dict, dict]:
    """By host its variables, and those of all."""
    told = run_tool(LAB / "inventory.py", env={"LAB_SCENARIO": SCENARIO})
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    variables = answer["all"]["vars"] | {"docker_engine_source": "docker"}  # as roles of others have it
    return answer["_meta"]["hostvars"], variables


def write_inventory(path: Path, groups: dict, variables: dict) -> Path:
    path.write_text(json.dumps({"all": {"children": groups, "vars": variables}}))
    return path


@pytest.fixture(scope="module")
def inventory(lab_host: str, run_tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The provisioned host under its own name (group `one`) and under others (groups `ten`, `fifty`)."""
    hosts, variables = lab_inventory(run_tool)
    names = {group: [f"{group}{number}" for number in range(count)] for group, count in NAMES.items()}
    names["one"] = [lab_host]
    groups = {group: {"hosts": dict.fromkeys(members, hosts[lab_host])} for group, members in names.items()}
    path = write_inventory(tmp_path_factory.mktemp("inventory") / "hosts.json", groups, variables)
    run_book(run_tool, path, "one", "playbooks/provision.yml")
    return path


def run_book(run_tool, inventory: Path, group: str, book: str | Path, *words: str, **options) -> tuple[str, float]:
    """What the playbook said, which has to end well, and its seconds."""
    more = ("-i", inventory, "--limit", group, "-e", "gpu_host_reboot_allowed=true", FORKS, *words)
    started = time.perf_counter()
    done = run_tool("ansible-playbook", book, *more, timeout=3600, **options)
    took = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout, took


def actions(said: str) -> int:
    """Of one host: what was run or skipped on it, by the recap."""
    return max(int(ok) + int(skipped) for ok, skipped in re.findall(r" ok=(\d+) .* skipped=(\d+)", said))


def ping(run_tool, inventory: Path, group: str) -> float:
    """Seconds of a ping, with connections that are open."""
    times = []
    for _ in range(1 + PINGS):
        started = time.perf_counter()
        done = run_tool("ansible", group, "-i", inventory, "-m", "ansible.builtin.ping", FORKS, timeout=300)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stdout + done.stderr
    return statistics.median(times[1:])


@pytest.fixture(scope="module")
def pinged(inventory: Path, run_tool) -> dict[str, float]:
    return {group: ping(run_tool, inventory, group) for group in NAMES}


def report(timing, what: str, took: float, pings: float, said: str) -> None:
    timing(f"{what}: {took / pings:.1f} × ping ({pings:.1f} s), {actions(said)} actions", took, limit=1200)


def of(group: str) -> str:
    return "1 host" if NAMES[group] == 1 else f"{NAMES[group]} names of one host"


@pytest.mark.parametrize("group", NAMES)
def test_converged_provision_against_ping(group: str, inventory: Path, pinged: dict[str, float], run_tool, timing):
    said, took = run_book(run_tool, inventory, group, "playbooks/provision.yml")
    assert said.count(" changed=0 ") == said.count(" ok="), said[-4000:]
    report(timing, f"converged provision.yml, {of(group)}", took, pinged[group], said)


@pytest.fixture
def copies(lab_host: str, inventory: Path) -> Iterator[Callable[[int], list[str]]]:
    """Starts so many test hosts on copies of the provisioned one's disk, and says their names."""
    names: list[str] = []

    def start(count: int) -> list[str]:
        names.extend(f"site{number}" for number in range(count))
        for name in names:
            start_host(name, "--like", lab_host)
        return names

    yield start
    for name in names:  # what is timed next has the machine for itself
        lab("down", name, "--scenario", SCENARIO)


@pytest.mark.parametrize("count", HOSTS)
def test_converged_site_against_ping(count: int, copies, run_tool, timing, tmp_path: Path):
    """Each host with a simulated engine that runs; the lab's registry has its image."""
    names = copies(count)
    hosts, variables = lab_inventory(run_tool)
    shared = yaml.safe_load((REPO_ROOT / "molecule/common/group_vars/serving.yml").read_text())
    variables |= shared | {
        "serving_services": shared["serving_services"][:1],
        "serving_output_dir": str(tmp_path / "build"),
        "host_verification_output_dir": str(tmp_path / "build"),
        "engine_image_lock_file": str(tmp_path / "images.lock.yml"),
        "cuda_toolkit_enabled": False,
    }
    groups = {"site": {"hosts": {name: hosts[name] for name in names}}}
    path = write_inventory(tmp_path / "hosts.json", groups, variables)
    run_book(run_tool, path, "site", "site.yml")
    pings = ping(run_tool, path, "site")
    said, took = run_book(run_tool, path, "site", "site.yml")
    assert said.count(" changed=0 ") == said.count(" ok="), said[-4000:]
    report(timing, f"converged site.yml, {count} test hosts", took, pings, said)


def test_public_roles_against_ping(
    inventory: Path, pinged: dict[str, float], run_tool, timing, tmp_path: Path, request: pytest.FixtureRequest
):
    """Each role alone, on a host where it has nothing left to do."""
    roles = [Path(role).resolve() for role in request.config.getoption("--public-role")]
    if not roles:
        pytest.skip("no --public-role")
    for role in roles:
        book = tmp_path / f"{role.name}.yml"
        own = role / "benchmark.yml"
        play = {"hosts": "all", "become": True, "roles": [str(role)]}
        play |= yaml.safe_load(own.read_text()) if own.exists() else {}
        book.write_text(yaml.safe_dump([play]))
        environment = {
            "ANSIBLE_INJECT_FACT_VARS": "true",  # most roles count on it
            "ANSIBLE_COLLECTIONS_PATH": f"{role / 'collections'}:.collections",
        }
        run_book(run_tool, inventory, "one", book, env=environment)
        for group in NAMES:
            said, took = run_book(run_tool, inventory, group, book, "--skip-tags=prepare", env=environment)
            report(timing, f"converged role {role.name}, {of(group)}", took, pinged[group], said)
