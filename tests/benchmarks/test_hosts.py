"""A converged provision run as a multiple of `ansible -m ping` on the same hosts. Only `make bench` runs this."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
LAB = REPO_ROOT / "molecule/lab"
SCENARIO = "bench"
PINGS = 3


@pytest.fixture(scope="module")
def lab_host() -> Iterator[str]:
    """Name of a virgin test host; the lab's inventory knows how to reach it."""

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, LAB / "lab.py", *words], capture_output=True, text=True, check=False)

    if (answer := lab("status")).returncode:
        pytest.skip(answer.stderr.strip())
    started = lab("up", "timed", "--scenario", SCENARIO, "--gpu", "rtx_5090")
    assert started.returncode == 0, started.stderr
    yield "timed"
    lab("down", "--all", "--scenario", SCENARIO)


@pytest.fixture(scope="module")
def inventory(lab_host: str, run_tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converged host, once as itself (group `one`) and under ten names (group `ten`)."""
    told = run_tool(LAB / "inventory.py", env={"LAB_SCENARIO": SCENARIO})
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    host = answer["_meta"]["hostvars"][lab_host]
    names = {"one": [lab_host], "ten": [f"name{number}" for number in range(10)]}
    groups = {group: {"hosts": dict.fromkeys(members, host)} for group, members in names.items()}
    path = tmp_path_factory.mktemp("inventory") / "hosts.json"
    path.write_text(json.dumps({"all": {"children": groups, "vars": answer["all"]["vars"]}}))
    provision(run_tool, path, "one")
    return path


def provision(run_tool, inventory: Path, group: str) -> str:
    words = ("-i", inventory, "--limit", group, "-e", "gpu_host_reboot_allowed=true", "--forks=10")
    done = run_tool("ansible-playbook", "playbooks/provision.yml", *words, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@pytest.mark.parametrize(("group", "hosts"), [("one", "1 host"), ("ten", "10 names of one host")])
def test_converged_provision_against_ping(group: str, hosts: str, inventory: Path, run_tool, timing):
    def ping() -> None:
        done = run_tool("ansible", group, "-i", inventory, "-m", "ansible.builtin.ping", "--forks=10")
        assert done.returncode == 0, done.stdout + done.stderr

    ping()  # opens the connections, which both then find open
    pinged = statistics.median(seconds(ping) for _ in range(PINGS))
    said = ""

    def run() -> None:
        nonlocal said
        said = provision(run_tool, inventory, group)

    provisioned = seconds(run)
    assert said.count(" changed=0 ") == said.count(" ok="), said
    timing(f"ansible -m ping, {hosts}", pinged, limit=60)
    timing(f"converged provision, {hosts}: {provisioned / pinged:.1f} × ping", provisioned, limit=300)
