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

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
LAB = REPO_ROOT / "molecule/lab"
SCENARIO = "bench"
PINGS = 3
# Names under which the one test host is in the inventory: its own, and more that stand for as many hosts.
NAMES = {"one": 1, "ten": 10, "fifty": 50}
FORKS = "--forks=25"


@pytest.fixture(scope="module")
def lab_host() -> Iterator[str]:
    """Name of a virgin test host; the lab's inventory knows how to reach it."""

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, LAB / "lab.py", *words], capture_output=True, text=True, check=False)

    if (answer := lab("status")).returncode:
        pytest.skip(answer.stderr.strip())
    started = lab("up", "timed", "--scenario", SCENARIO, "--gpu", "rtx_5090", "--registry")
    assert started.returncode == 0, started.stderr
    yield "timed"
    lab("down", "--all", "--scenario", SCENARIO)


@pytest.fixture(scope="module")
def inventory(lab_host: str, run_tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The provisioned host under its own name (group `one`) and under others (groups `ten`, `fifty`)."""
    told = run_tool(LAB / "inventory.py", env={"LAB_SCENARIO": SCENARIO})
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    host = answer["_meta"]["hostvars"][lab_host]
    names = {group: [f"{group}{number}" for number in range(count)] for group, count in NAMES.items()}
    names["one"] = [lab_host]
    groups = {group: {"hosts": dict.fromkeys(members, host)} for group, members in names.items()}
    path = tmp_path_factory.mktemp("inventory") / "hosts.json"
    variables = answer["all"]["vars"] | {"docker_engine_source": "docker"}  # as roles of others have it
    path.write_text(json.dumps({"all": {"children": groups, "vars": variables}}))
    run_book(run_tool, path, "one", "playbooks/provision.yml")
    return path


def run_book(run_tool, inventory: Path, group: str, book: str | Path, *words: str, **options) -> tuple[str, float]:
    """What the playbook said, which has to end well, and its seconds."""
    more = ("-i", inventory, "--limit", group, "-e", "gpu_host_reboot_allowed=true", FORKS, *words)
    started = time.perf_counter()
    done = run_tool("ansible-playbook", book, *more, timeout=1800, **options)
    took = time.perf_counter() - started
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout, took


def actions(said: str) -> int:
    """Of one host: what was run or skipped on it, by the recap."""
    return max(int(ok) + int(skipped) for ok, skipped in re.findall(r" ok=(\d+) .* skipped=(\d+)", said))


@pytest.fixture(scope="module")
def pinged(inventory: Path, run_tool) -> dict[str, float]:
    """Seconds of a ping by group, with connections that are open."""
    found = {}
    for group in NAMES:
        times = []
        for _ in range(1 + PINGS):
            started = time.perf_counter()
            done = run_tool("ansible", group, "-i", inventory, "-m", "ansible.builtin.ping", FORKS, timeout=300)
            times.append(time.perf_counter() - started)
            assert done.returncode == 0, done.stdout + done.stderr
        found[group] = statistics.median(times[1:])
    return found


def report(timing, what: str, group: str, took: float, ping: float, said: str) -> None:
    hosts = "1 host" if NAMES[group] == 1 else f"{NAMES[group]} names of one host"
    timing(f"{what}, {hosts}: {took / ping:.1f} × ping ({ping:.1f} s), {actions(said)} actions", took, limit=1200)


@pytest.mark.parametrize("group", NAMES)
def test_converged_provision_against_ping(group: str, inventory: Path, pinged: dict[str, float], run_tool, timing):
    said, took = run_book(run_tool, inventory, group, "playbooks/provision.yml")
    assert said.count(" changed=0 ") == said.count(" ok="), said[-4000:]
    report(timing, "converged provision.yml", group, took, pinged[group], said)


def test_converged_site_against_ping(inventory: Path, pinged: dict[str, float], run_tool, timing, tmp_path: Path):
    """With three simulated engines that run. Each name would have a plan of its own, so there is one host."""
    variables = yaml.safe_load((REPO_ROOT / "molecule/common/group_vars/serving.yml").read_text())
    variables |= {
        "serving_output_dir": str(tmp_path / "build"),
        "host_verification_output_dir": str(tmp_path / "build"),
        "engine_image_lock_file": str(tmp_path / "images.lock.yml"),
        "cuda_toolkit_enabled": False,
    }
    (tmp_path / "variables.json").write_text(json.dumps(variables))
    words = ("-e", f"@{tmp_path / 'variables.json'}")
    run_book(run_tool, inventory, "one", "site.yml", *words)
    said, took = run_book(run_tool, inventory, "one", "site.yml", *words)
    assert " changed=0 " in said, said[-4000:]
    report(timing, "converged site.yml", "one", took, pinged["one"], said)


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
            report(timing, f"converged role {role.name}", group, took, pinged[group], said)
