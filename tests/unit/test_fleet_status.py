"""A fleet's status from made-up hosts: what is wrong, what would change, and pages that show it."""

import copy
import html.parser

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils import fleet_status, host_status
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import StackDocker
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Releases
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import spec_digest
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render
from ansible_collections.blackwell.serving.plugins.plugin_utils.status_page import status_page

NOW = "2026-11-25T12:00:00Z"
SERVICES = [
    {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002},
    {"name": "yi", "engine": "vllm", "model": "01-ai/Yi-6B", "port": 30003},
]


def planned(services=SERVICES):
    declared = {"mode": "apply", "gpus": ["rtx_5090"], "services": services}
    plan = plan_host("box1", declared, load_catalog())
    return {"plan": plan, "definition": yaml.safe_load(render(plan)["compose.yaml"])}


@pytest.fixture(scope="module")
def wanted():
    return planned()


@pytest.fixture
def seen(wanted):
    """A host that is as planned."""
    containers = [
        {
            "id": name * 3,
            "project": "serving",
            "service": name,
            "name": name,
            "spec": spec_digest(service),
            "image": service["image"],
            "image_id": f"sha256:{name}",
            "status": "running",
            "health": "healthy",
            "exit_code": 0,
            "restarts": 0,
            "started": "2026-11-25T09:00:00.5Z",
            "pid": 100 + number,
        }
        for number, (name, service) in enumerate(wanted["definition"]["services"].items())
    ]
    gpu = {"index": 0, "uuid": "GPU-1", "name": "NVIDIA GeForce RTX 5090"}
    facts = {
        "os": {"name": "Debian GNU/Linux 13 (trixie)"},
        "kernel": {"release": "6.12.57"},
        "driver": {"loaded": {"version": "580.95.05"}, "installed": {"version": "580.95.05"}},
        "docker": {"running": True, "version": "29.1.1", "compose_version": "2.40.3"},
        "toolkit": {"version": "1.19.1"},
        "gpus": [gpu | {"memory_total_mib": 32607, "memory_used_mib": 25000}],
        "pci": [{"device": "2b85"}],
        "nvidia_smi_error": None,
        "mounts": [{"path": "/", "mount": "/", "size_bytes": 10**12, "available_bytes": 5 * 10**11}],
        "reboot_reasons": [],
    }
    return copy.deepcopy(
        {
            "facts": facts,
            "uptime_seconds": 90000.0,
            "containers": containers,
            "gpu_memory": {"qwen": {"0": 10240}},
            "images": {},
            "memory": {"status": "ok", "message": "", "services": {"qwen": {"kv_tokens": 81919}}},
            "release": {"name": "20261125T090000Z", "status": "serving", **wanted},
        }
    )


def view(seen, wanted):
    return fleet_status.host_view("box1", seen, wanted)


def test_a_host_that_serves_its_plan_is_as_planned(seen, wanted):
    found = view(seen, wanted)
    assert (found["state"], found["problems"], found["changes"]) == ("as planned", [], [])
    qwen = next(service for service in found["services"] if service["name"] == "qwen")
    assert (qwen["kv_tokens"], qwen["used_gib"]) == (81919, 10.0)


def spoil(path, value):
    def change(seen):
        *steps, last = path
        for step in steps:
            seen = seen[step]
        seen[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (spoil(["facts", "driver", "installed"], {"version": "580.105.08"}), "580.105.08 is installed: reboot"),
        (spoil(["facts", "driver", "loaded"], None), "no driver is loaded"),
        (spoil(["facts", "nvidia_smi_error"], "Driver/library\nversion mismatch"), "Driver/library version mismatch"),
        (spoil(["facts", "mounts", 0, "available_bytes"], 10**9), "/: 0.9 of 931.3 GiB available"),
        (spoil(["containers", 0, "status"], "exited"), "qwen is exited"),
        (spoil(["containers", 1, "health"], "unhealthy"), "yi is running unhealthy"),
        (spoil(["containers", 0, "image"], "lmsysorg/sglang@sha256:0"), "qwen runs another image"),
        (spoil(["memory"], {"status": "failed", "message": "yi: has 1 token"}), "memory: yi: has 1 token"),
        (spoil(["containers"], []), "qwen is missing"),
        (spoil(["facts", "docker", "running"], False), "no Docker engine answers"),
    ],
)
def test_what_is_wrong_is_said(seen, wanted, change, problem):
    change(seen)
    found = view(seen, wanted)
    assert found["state"] == "failing"
    assert any(problem in text for text in found["problems"]), found["problems"]


def test_a_changed_declaration_is_shown_as_the_steps_that_a_deployment_would_take(seen):
    longer = planned([SERVICES[0] | {"context_length": 8192, "extra_args": {"log-level": "info"}}, SERVICES[1]])
    found = view(seen, longer)
    assert found["state"] == "differs"
    assert any("--log-level (new)" in text for text in found["changes"])


def test_a_service_that_is_declared_no_more_would_be_removed(seen):
    found = view(seen, planned(SERVICES[:1]))
    assert "yi: remove, it is not in the plan any more" in found["changes"]


def test_a_plan_that_cannot_be_made_is_a_problem_and_not_hidden(seen):
    found = view(seen, {"problem": "qwen does not fit"})
    assert found["problems"] == ["cannot be planned: qwen does not fit"]


def test_hosts_that_were_not_reached_are_shown(seen, wanted):
    gone = fleet_status.host_view("box2", None, None, "Task failed: Failed to connect")
    fleet = fleet_status.fleet_view([view(seen, wanted), gone], NOW)
    assert [host["host"] for host in fleet["hosts"]] == ["box2", "box1"]
    assert "box2: Failed to connect" in fleet_status.fleet_text(fleet)
    assert fleet["exit_code"] == 2


def test_what_is_wrong_counts_more_than_what_is_not_known(seen, wanted):
    seen["containers"].pop()
    gone = fleet_status.host_view("box2", None, None, "gone")
    assert fleet_status.fleet_view([view(seen, wanted), gone], NOW)["exit_code"] == 1


def test_the_text_has_each_service_with_its_figures(seen, wanted):
    text = fleet_status.fleet_text(fleet_status.fleet_view([view(seen, wanted)], NOW))
    assert "1 host: 1 as planned; 2 of 2 services up" in text
    (line,) = [line for line in text.splitlines() if " qwen " in line]
    assert "2 h" in line or "3 h" in line
    assert "81,919 / " in line
    assert "10.00 / " in line


class Page(html.parser.HTMLParser):
    """Elements that are not closed, addresses that are loaded, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href") and value != "data:,"]
        if tag not in ("meta", "link", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_loads_nothing_and_shows_markup_as_text(seen, wanted):
    seen["facts"]["nvidia_smi_error"] = "<script>alert(1)</script>"
    page = Page(status_page(fleet_status.fleet_view([view(seen, wanted)], NOW)))
    assert (page.open, page.loaded) == ([], [])
    assert "<script>alert(1)</script>" in " ".join(page.text)


def test_a_thousand_hosts_make_a_page_that_opens_only_those_that_need_a_look(seen, wanted):
    good = view(seen, wanted)
    seen["containers"].pop()
    bad = view(seen, wanted)
    views = [(bad if number % 100 == 0 else good) | {"host": f"box{number:04}"} for number in range(1000)]
    page = status_page(fleet_status.fleet_view(views, NOW))
    assert page.count("<details open>") == 10
    assert page.count("<details") == 1000
    assert len(page) < 4_000_000


# ---- on the host -------------------------------------------------------------------------------------------


def test_memory_is_counted_for_the_container_whose_process_is_an_ancestor(fake_host):
    host = fake_host(files={"/proc/220/stat": "220 (py) thon) S 210 0", "/proc/210/stat": "210 (python3) S 200 0"})
    facts = {
        "gpus": [{"uuid": "GPU-1", "index": 0}],
        "gpu_processes": [
            {"pid": 220, "gpu_uuid": "GPU-1", "used_memory_mib": 1000},
            {"pid": 200, "gpu_uuid": "GPU-1", "used_memory_mib": 24},
            {"pid": 999, "gpu_uuid": "GPU-1", "used_memory_mib": 5},
        ],
    }
    found = host_status.memory_by_container(host, facts, [{"pid": 200, "name": "qwen"}, {"pid": 0, "name": "yi"}])
    assert found == {"qwen": {"0": 1024}}


def test_a_host_without_docker_and_stack_can_be_looked_at(fake_host, tmp_path):
    host = fake_host(files={"/etc/os-release": 'PRETTY_NAME="Debian"\nID=debian\n', "/proc/uptime": "12.5 3.0\n"})
    found = host_status.look(host, StackDocker(host, "serving", "/none"), Releases(str(tmp_path)))
    assert (found["release"], found["containers"], found["uptime_seconds"]) == (None, [], 12.5)
    shown = fleet_status.host_view("box1", found, {})
    assert "no NVIDIA GPU is on its PCI bus" in shown["problems"]
