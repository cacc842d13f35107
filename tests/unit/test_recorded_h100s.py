"""What the host modules printed on a real box with two H100 (tests/fixtures/host_facts/README.md), and what follows."""

import json

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import host_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.host_verification import exit_code, table
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog

FOLDER = "h100x2_580.159.04_ubuntu2404"


@pytest.fixture
def facts(recording):
    return json.loads(recording(f"{FOLDER}/gpu_host_facts.json"))["ansible_facts"]["gpu_host"]


@pytest.fixture
def verification(recording):
    return json.loads(recording(f"{FOLDER}/host_verification_checks.json"))


def test_gpus_are_those_of_the_catalogue_and_can_be_planned_for(facts, catalog):
    found = host_decisions.discovered_gpus(facts, host_catalog.gpus(), [])
    assert found == ["h100_sxm", "h100_sxm"]
    service = {
        "name": "a",
        "engine": "sglang",
        "model": "Qwen/Qwen2.5-3B-Instruct",
        "port": 30001,
        "context_length": 4096,
    }
    plan = plan_host("box", {"gpus": found, "services": [{**service, "tensor_parallel": 2}]}, catalog)
    assert plan["verdict"] == "fits", plan["errors"]
    assert plan["services"][0]["gpus"] == [0, 1]


def test_another_declaration_is_refused_with_what_is_there(facts):
    with pytest.raises(host_decisions.Refusal, match="declares rtx_5090; there are h100_sxm, h100_sxm"):
        host_decisions.discovered_gpus(facts, host_catalog.gpus(), ["rtx_5090"])


def test_every_process_is_on_a_gpu_that_is_listed(facts):
    listed = {gpu["uuid"]: gpu for gpu in facts["gpus"]}
    held = dict.fromkeys(listed, 0)
    for process in facts["gpu_processes"]:
        held[process["gpu_uuid"]] += process["used_memory_mib"]
    assert all(0 < held[uuid] <= gpu["memory_used_mib"] for uuid, gpu in listed.items())


def test_what_cuda_sees_is_the_catalogue_s_figure(verification):
    visible = host_catalog.gpus()["h100_sxm"]["cuda_visible_gib"]
    assert [gpu["total_gib"] for gpu in verification["measured"]] == [visible, visible]


def test_the_verdict_follows_from_the_checks(verification):
    """No path to nvcc was a failure, no modinfo something that could not be checked; a kernel ran on both GPUs."""
    checks = verification["checks"]
    assert exit_code(checks) == verification["exit_code"] == 1
    assert table(checks) == verification["text"]
    by_id = {check["id"]: check for check in checks}
    assert "1,048,576 sums right on 2 GPUs" in by_id["cuda_runs"]["message"]
    assert [name for name, check in by_id.items() if check["status"] != "ok"] == ["driver_installed", "cuda_on_path"]
    assert all(check["remedy"] for check in checks if check["status"] != "ok")
