"""index.html: one page of all hosts, written once, the same every time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.fleet_index import FleetHost, index_text, index_view
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render_index

TINY = {"name": "tiny", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30001}
WIDE = {"name": "wide", "engine": "sglang", "model": "Qwen/Qwen2.5-14B-Instruct", "port": 30002, "tensor_parallel": 2,
        "context_length": 8192}  # fmt: skip
LARGE = TINY | {"name": "large", "model": "Qwen/Qwen2.5-32B-Instruct", "port": 30003}


@pytest.fixture(scope="module")
def hosts(make_plan):
    """Hosts by what becomes of them; the mixed one has a service on two of its three GPUs."""
    plans = {
        "one": make_plan([TINY]),
        "mixed": make_plan([WIDE, TINY], ["rtx_5090", "rtx_5090", "rtx_5080"]),
        "short": make_plan([LARGE]),
        "wrong": make_plan([TINY | {"port": 0}]),
        "new": None,
    }
    groups = {"one": ("north",), "mixed": ("north", "lab"), "short": ("south",), "wrong": ("south",)}
    return [FleetHost(name, groups.get(name, ()), plan) for name, plan in plans.items()]


def test_totals_are_the_sums_of_the_plans(hosts):
    view = index_view(hosts)
    fitting = [host.plan for host in hosts if host.plan and host.plan["verdict"] == "fits"]
    planned = sum(gpu["planned_gib"] for plan in fitting for gpu in plan["gpus"])
    total = view["total"]
    assert [total[key] for key in ("hosts", "fits", "does_not_fit", "invalid", "unplanned")] == [5, 2, 1, 1, 1]
    assert (total["services"], total["gpus"], total["planned"]) == (3, 4, f"{planned:,.2f}")
    kinds = {kind["name"]: kind for kind in view["kinds"]}
    assert sum(kind["gpus"] for kind in kinds.values()) == total["gpus"]
    assert sum(float(kind["planned"]) for kind in kinds.values()) == pytest.approx(planned, abs=0.02)
    assert kinds["NVIDIA GeForce RTX 5090"]["does_not_fit"] == 1
    groups = {group["name"]: group for group in view["groups"]}
    assert (groups["north"]["hosts"], groups["north"]["fits"], groups["south"]["fits"]) == (2, 2, 0)


def test_what_was_refused_says_by_how_much_why_and_what_would_help(hosts):
    refused = {entry["name"]: entry for entry in index_view(hosts)["refused"]}
    assert list(refused) == ["short", "wrong", "new"]
    (short,) = [host.plan for host in hosts if host.name == "short"]
    said = re.search(r"([\d.]+) GiB short on GPU 0", short["errors"][0]["problem"])
    assert float(refused["short"]["short"]) == pytest.approx(float(said[1]), abs=0.01)
    assert any(problem["remedies"] for problem in refused["short"]["problems"])
    assert "port" in refused["wrong"]["problems"][0]["problem"]
    assert refused["new"]["problems"] == []


def test_a_host_that_fits_leads_to_its_report_and_another_to_its_plan(hosts):
    page = render_index(index_view(hosts))
    assert re.findall(r'href="(\w+)/([\w.]+)"', page) == [
        ("one", "report.html"), ("mixed", "report.html"), ("short", "plan.json"), ("wrong", "plan.json"),
    ]  # fmt: skip


def test_nothing_in_a_plan_becomes_markup():
    plan = {"verdict": "invalid", "gpus": [], "services": [], "warnings": [],
            "errors": [{"problem": "<script>alert(1)</script>", "remedies": ["<b>"]}]}  # fmt: skip
    page = render_index(index_view([FleetHost("a&b", ("<i>",), plan)]))
    assert page.count("<script>") == 1
    assert "<b>" not in page.split("<summary>")[1].split("</summary>")[1]
    assert "&lt;script&gt;" in page


def test_the_terminal_names_the_hosts_that_were_refused(hosts):
    lines = index_text(index_view(hosts), "build/index.html").splitlines()
    assert lines[0].startswith("5 hosts: 2 fit, 1 do not fit, 1 invalid, 1 not planned; 3 services on 4 GPUs")
    assert lines[1:4] == ["does not fit: short", "invalid: wrong", "not planned: new"]
    many = [FleetHost(f"host{number}", (), None) for number in range(1000)]
    assert "host4 and 995 more" in index_text(index_view(many), "x")


def test_a_thousand_hosts_are_one_page_of_less_than_a_megabyte(hosts):
    thousand = [host._replace(name=f"{host.name}-{number}") for number in range(200) for host in hosts]
    page = render_index(index_view(thousand))
    assert page.count("<tr>") > 1000
    assert len(page.encode()) < 1 << 20


@pytest.fixture
def run_plan(tmp_path: Path, ansible_playbook):
    """Plan an inventory of hosts by their services; returns the finished process."""

    def run(services: dict[str, list], *options: str):
        declared = {name: {"serving_services": list(items)} for name, items in services.items()}
        content = {"all": {"vars": {"serving_gpus": ["rtx_5090"]}, "children": {"site_a": {"hosts": declared}}}}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(content))
        words = ("playbooks/plan.yml", "-i", tmp_path / "hosts.yml", "-e", f"output_dir={tmp_path / 'out'}", *options)
        return ansible_playbook(*words)

    return run


def test_the_control_node_writes_it_once_and_a_second_run_changes_nothing(tmp_path: Path, run_plan):
    fleet = {"a": [TINY], "b": [TINY], "c": [LARGE]}
    checked = run_plan(fleet, "--check")
    assert "3 hosts: 2 fit, 1 do not fit" in checked.stdout
    assert not (tmp_path / "out").exists()
    first = run_plan(fleet)
    assert first.stdout.count("changed=2") == 1, "one host writes the page beside its own plan"
    page = (tmp_path / "out/index.html").read_text()
    second = run_plan(fleet)
    assert second.stdout.count("changed=0") == 3
    assert (tmp_path / "out/index.html").read_text() == page
    assert page.count("site_a") > 1


def test_a_run_for_one_host_keeps_the_others_on_the_page(tmp_path: Path, run_plan):
    run_plan({"a": [TINY], "b": [TINY]})
    run_plan({"a": [TINY], "b": [LARGE], "new": [TINY]}, "--limit", "b")
    page = (tmp_path / "out/index.html").read_text()
    rows = dict(
        re.findall(
            r'<tr><th scope="row">(?:<a[^>]*>)?([\w-]+)(?:</a>)?</th><td class="\w+">([^<]+)</td>',
            page.split('id="hosts"')[1],
        )
    )
    assert rows == {"a": "fits", "b": "does not fit", "new": "not planned"}
    run_plan({"a": [TINY]})
    assert "does not fit" not in (tmp_path / "out/index.html").read_text().split('id="hosts"')[1]


def test_a_plan_of_another_schema_counts_as_none(tmp_path: Path, run_plan):
    run_plan({"a": [TINY], "b": [TINY]})
    path = tmp_path / "out/b/plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))
    assert "1 not planned" in run_plan({"a": [TINY], "b": [TINY]}, "--limit", "a").stdout
