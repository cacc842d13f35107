"""plan.yml over a fleet of previewed hosts: time, processor time and memory of the control node."""

import resource
import time
from pathlib import Path

import pytest


@pytest.fixture
def host_count(request: pytest.FixtureRequest) -> int:
    return 1000 if request.config.getoption("--full-benchmarks") else 20


def test_plan_many_hosts(tmp_path: Path, ansible_playbook, host_count: int, timing):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(f"all: {{hosts: {{'node[0001:{host_count:04}]': }}}}\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = ansible_playbook(
        "playbooks/plan.yml",
        "-i",
        inventory,
        "-e",
        "@inventory/local/group_vars/all/main.yml",
        "-e",
        f"output_dir={tmp_path / 'out'}",
        timeout=1200,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    timing(
        f"plan.yml, {host_count} hosts with 3 services each: {processor:.0f} s of processor time, "
        f"{after.ru_maxrss / 1024:.0f} MB in the largest process",
        seconds,
        limit=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert len(list((tmp_path / "out").glob("*/compose.yaml"))) == host_count
    assert (tmp_path / "out/index.html").stat().st_size < 1 << 20
