"""A newcomer's first command, from a fresh copy, and again."""

import json
import time
from pathlib import Path

import yaml


def test_make_site_in_a_fresh_copy_and_again(fresh_copy: Path, run_tool, readmes, timing):
    started = time.perf_counter()
    first = run_tool("make", "site", cwd=fresh_copy, timeout=600)
    timing("make site, the first time (sets up .venv)", time.perf_counter() - started, limit=300)
    assert first.returncode == 0, first.stdout + first.stderr

    written = fresh_copy / "build/rtx5090"
    assert {file.name for file in written.iterdir()} == {"plan.json", "compose.yaml", "plan.txt", "report.html"}
    plan = json.loads((written / "plan.json").read_text())
    assert plan["verdict"] == "fits"
    assert [service["port"] for service in plan["services"]] == [30001, 30002, 30003]
    assert len(yaml.safe_load((written / "compose.yaml").read_text())["services"]) == 3
    for line in (written / "plan.txt").read_text().splitlines():
        assert line.strip() in first.stdout

    assert (written / "plan.txt").read_text("utf-8") == readmes.example_plan()

    started = time.perf_counter()
    second = run_tool("make", "site", cwd=fresh_copy)
    timing("make site again", time.perf_counter() - started, limit=6)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Installing" not in second.stdout
    assert "changed=0" in second.stdout
