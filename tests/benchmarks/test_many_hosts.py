"""plan.yml over a fleet of previewed hosts."""

import time
from pathlib import Path

import pytest


@pytest.fixture
def host_count(request: pytest.FixtureRequest) -> int:
    return 100 if request.config.getoption("--full-benchmarks") else 20


def test_plan_many_hosts(tmp_path: Path, ansible_playbook, host_count: int, timing):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(f"all: {{hosts: {{'node[001:{host_count:03}]': }}}}\n")
    started = time.perf_counter()
    done = ansible_playbook(
        "playbooks/plan.yml",
        "-i",
        inventory,
        "-e",
        "@inventory/local/group_vars/all/main.yml",
        "-e",
        f"output_dir={tmp_path / 'out'}",
        timeout=300,
    )
    timing(f"plan.yml, {host_count} hosts with 3 services each", time.perf_counter() - started, limit=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "out").glob("*/compose.yaml"))) == host_count
