"""stack_diagnosis on made-up hosts whose logs hold recorded lines (catalog/failures.yml)."""

import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.diagnosis import signatures
from ansible_collections.blackwell.serving.plugins.module_utils.stack_diagnosis import (
    LAST_LINES,
    StackDiagnosis,
    in_order,
    report,
)

REPO_ROOT = Path(__file__).resolve().parents[2]
ENTRIES = yaml.safe_load((REPO_ROOT / "catalog/failures.yml").read_text())["failures"]
LINES = {entry["id"]: entry["lines"][0]["text"] for entry in ENTRIES}
SIGNATURES = signatures(ENTRIES)
STACK = "/opt/blackwell-serving/stack"
LOGS = "docker logs --timestamps --tail 400"
PLAN = {
    "services": [
        {"name": "qwen", "engine": "sglang", "container_name": "qwen", "start_order": 1},
        {"name": "tinyllama", "engine": "vllm", "container_name": "tinyllama", "start_order": 2},
    ]
}
STARTED = "2026-11-24T10:00:00.000000000Z"


def container(status="running", health="healthy", code=0, error="", restarts=0):
    health = {"Health": {"Status": health}} if health else {}
    state = {"Status": status, "ExitCode": code, "Error": error, "StartedAt": STARTED, **health}
    return {"State": state, "RestartCount": restarts}


def log(*lines, start=0):
    """As `docker logs --timestamps` prints it."""
    return "".join(f"2026-11-24T10:00:{start + second:02d}.000000000Z {line}\n" for second, line in enumerate(lines))


@pytest.fixture
def host(fake_host):
    """Two services that are well."""
    return fake_host(
        files={f"{STACK}/current/plan.json": json.dumps(PLAN)},
        commands={
            f"{LOGS} --since {STARTED} qwen": (0, log("The server is fired up and ready to roll!"), ""),
            f"{LOGS} --since {STARTED} tinyllama": (0, log("Application startup complete."), ""),
            "docker exec qwen nvidia-smi": (0, "GPU 0: NVIDIA GeForce RTX 5090 (UUID: GPU-0)\n", ""),
            "docker exec tinyllama nvidia-smi": (0, "GPU 0: NVIDIA GeForce RTX 5090 (UUID: GPU-0)\n", ""),
            "nvidia-smi": (0, "| NVIDIA-SMI 580.95.05 |\n", ""),
            "journalctl": (0, "", ""),
        },
        docker={
            "/containers/json?all=1": [],
            "/containers/qwen/json": container(),
            "/containers/tinyllama/json": container(),
        },
    )


def look(host, **options):
    diagnosis = StackDiagnosis(host, SIGNATURES, STACK, "serving", "/var/run/docker.sock", **options)
    findings = diagnosis.findings()
    return findings, report(findings, diagnosis.states)


def seen(findings):
    return [(finding["place"], finding["id"]) for finding in findings]


def qwen_ended(host, *lines, **state):
    host.docker["/containers/qwen/json"] = container("exited", "", 1, **state)
    host.commands[f"{LOGS} qwen"] = (0, "", log(*lines))


def test_stack_that_is_well(host):
    findings, text = look(host)
    assert findings == []
    assert text.splitlines()[:2] == ["qwen is running and healthy", "tinyllama is running and healthy"]
    assert "Nothing that is recognised" in text


def test_service_that_ended_says_cause_remedy_and_line(host):
    qwen_ended(
        host, "loading", LINES["sglang_process_ended"], LINES["no_kernel_image"], LINES["no_kernel_image"], restarts=3
    )
    findings, text = look(host)
    assert seen(findings) == [("qwen", "no_kernel_image"), ("qwen", "sglang_process_ended")]
    assert findings[0]["state"] == "has exited with status 1, 3 restarts"
    rows = text.splitlines()
    assert rows[0] == "qwen has exited with status 1, 3 restarts"
    assert [row.split()[0] for row in rows[1:4]] == ["cause", "remedy", "line"]
    assert rows[3] == f"  line    {LINES['no_kernel_image']}  (2 times)"
    assert "tinyllama is running and healthy" in rows


def test_engines_are_told_apart(host):
    """What only vLLM says is no line of SGLang's log."""
    qwen_ended(host, LINES["vllm_no_cache_blocks"])
    assert seen(look(host)[0]) == [("qwen", "unknown")]
    host.docker["/containers/tinyllama/json"] = container("exited", "", 1)
    host.commands[f"{LOGS} tinyllama"] = (0, log(LINES["vllm_no_cache_blocks"]), "")
    assert ("tinyllama", "vllm_no_cache_blocks") in seen(look(host)[0])


@pytest.mark.parametrize("more", [[], ["sglang_process_ended"]])
def test_nothing_recognised_is_said_with_the_last_lines(host, more):
    """Also where it is only recognised that something ended."""
    lines = [*(f"line {number}" for number in range(30)), *(LINES[name] for name in more)]
    qwen_ended(host, *lines)
    findings, text = look(host)
    assert seen(findings) == [*(("qwen", name) for name in more), ("qwen", "unknown")]
    assert findings[-1]["last_lines"] == lines[-LAST_LINES:]
    assert "no line of its log is recognised" in text
    assert "          line 29" in text.splitlines()
    assert "          line 1" not in text.splitlines()


def test_container_that_docker_could_not_start(host):
    """Docker's reason stands in the container's state; there is no log."""
    error = LINES["cdi_device_unknown"]
    qwen_ended(host, error=error)
    findings, _ = look(host)
    assert seen(findings) == [("qwen", "cdi_device_unknown")]
    assert findings[0]["line"] == error


def test_container_of_the_plan_that_does_not_exist(host):
    host.docker["/containers/qwen/json"] = None
    findings, text = look(host)
    assert seen(findings) == [("qwen", "unknown")]
    assert findings[0]["cause"] == "it has no log"
    assert "qwen does not exist" in text


def test_service_that_is_well_reports_only_what_it_cannot_go_on_after(host):
    host.commands[f"{LOGS} --since {STARTED} qwen"] = (
        0,
        log(LINES["input_too_long"], LINES["torch_out_of_memory"]),
        "",
    )
    assert seen(look(host)[0]) == [("qwen", "torch_out_of_memory")]


def test_container_that_lost_its_gpu(host):
    host.commands["docker exec qwen nvidia-smi"] = (255, "Failed to initialize NVML: Unknown Error\n", "")
    findings, text = look(host)
    assert seen(findings) == [("qwen", "gpu_lost_in_container")]
    assert "serving_gpu_request: cdi" in text


def test_image_without_nvidia_smi_is_no_finding(host):
    host.commands["docker exec qwen nvidia-smi"] = (127, "", 'exec: "nvidia-smi": executable file not found in $PATH\n')
    assert look(host)[0] == []


def test_other_containers_of_the_project_are_looked_at(host):
    """A gateway, or what an older plan left; a container of another project is not ours."""
    host.docker["/containers/json?all=1"] = [
        {"Names": ["/gateway"], "Labels": {"com.docker.compose.project": "serving"}},
        {"Names": ["/web"], "Labels": {"com.docker.compose.project": "shop"}},
        {"Names": None, "Labels": None},
    ]
    host.docker["/containers/gateway/json"] = container("exited", "", 1)
    host.commands[f"{LOGS} gateway"] = (0, log(LINES["container_port_taken"]), "")
    findings, text = look(host)
    assert seen(findings) == [("gateway", "container_port_taken")]
    assert "web" not in text


def test_without_a_plan_the_project_is_what_is_looked_at(host):
    host.files = {}
    assert look(host) == ([], "There is no stack on this host, and its logs hold nothing that is recognised.")
    host.docker["/containers/json?all=1"] = [{"Names": ["/qwen"], "Labels": {"com.docker.compose.project": "serving"}}]
    qwen_ended(host, LINES["sglang_not_enough_memory"])
    assert seen(look(host)[0]) == [("qwen", "sglang_not_enough_memory")]


def test_logs_of_the_host(host):
    journal = "journalctl --no-pager --quiet --output short-iso"
    host.commands[f"{journal} --unit=docker"] = (
        0,
        f"2026-11-24T10:00:00+0000 h dockerd[1]: {LINES['registry_rate_limit']}\n",
        "",
    )
    kernel = [
        "kernel: usb 1-1: new device",
        f"kernel: {LINES['xid_fallen_off']}",
        f"kernel: {LINES['kernel_out_of_memory']}",
    ]
    host.commands[f"{journal} --dmesg"] = (0, "\n".join(kernel), "")
    host.commands["nvidia-smi"] = (18, f"{LINES['driver_library_mismatch']}\nNVML library version: 580.95\n", "")
    findings, text = look(host)
    assert seen(findings) == [
        ("driver", "driver_library_mismatch"),
        ("docker", "registry_rate_limit"),
        ("kernel", "xid_fallen_off"),
        ("kernel", "kernel_out_of_memory"),
    ]
    assert "Nothing that is recognised" not in text


def test_no_docker_engine(host):
    host.docker = {}
    findings, _ = look(host)
    assert seen(findings) == [("docker", "docker_not_running")]


def test_disk_that_is_nearly_full(host):
    host.file_systems = {"/": {"size": 10**12, "available": 10**8}}
    findings, _ = look(host, disk={"/var/lib/docker": 1})
    assert seen(findings) == [("disk", "disk_nearly_full")]
    assert findings[0]["line"] == "0.1 GiB available on /"
    assert look(host, disk={"/var/lib/docker": 0.05})[0] == []


def test_both_streams_come_in_order_of_time():
    out, err = log("first", "third", start=0).splitlines(), log("second", start=0).splitlines()
    err = [err[0].replace("10:00:00.0", "10:00:00.5")]
    assert in_order(out + err) == ["first", "second", "third"]
    assert in_order(["no time", "2026-11-24T10:00:00.000000000Z "]) == ["no time", ""]


def test_module_on_this_machine(run_module, tmp_path):
    """No Docker engine answers at that socket, so nothing else can be looked at."""
    result = run_module(
        "stack_diagnosis",
        signatures=[{key: value for key, value in entry.items() if key != "lines"} for entry in ENTRIES],
        project="serving",
        stack_dir=str(tmp_path),
        docker_socket=str(tmp_path / "docker.sock"),
        disk={"/": 10**9},
    )
    assert result["changed"] is False
    assert result["containers"] == []
    assert {"docker_not_running", "disk_nearly_full"} <= {finding["id"] for finding in result["findings"]}
    assert "no Docker engine answers" in result["text"]


def test_tag_diagnose_runs_the_diagnosis_alone(ansible_playbook):
    listed = ansible_playbook("playbooks/verify.yml", "-i", "here,", "--list-tasks", "--tags", "diagnose").stdout
    named = [line.split(" : ")[1].split("\t")[0] for line in listed.splitlines() if " : " in line]
    assert [name for name in named if not name.startswith("Validating arguments")] == [
        "Read the logs on the host",
        "Show what they say",
    ]


def test_failed_service_is_diagnosed_in_the_same_run(ansible_playbook, tmp_path):
    """A deployed plan whose container does not exist on this machine, with and without the check of services."""
    (tmp_path / "stack/current").mkdir(parents=True)
    service = PLAN["services"][0] | {"container_name": "blackwell-test-no-such-container", "model": "m", "port": 1}
    plan = {"services": [service | {"bind_address": "127.0.0.1"}], "gpus": []}
    (tmp_path / "stack/current/plan.json").write_text(json.dumps(plan))
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "output_dir": str(tmp_path),
        "host_verification_stack_dir": str(tmp_path / "stack"),
        "host_verification_disk_gib": {"/": 0.001},
    }
    for check, diagnosed in (("services_answer", True), ("disk_space", False)):
        extra = json.dumps(variables | {"host_verification_checks": [check]})
        done = ansible_playbook("playbooks/verify.yml", "-i", "here,", "-e", extra)
        assert (done.returncode != 0) is diagnosed, done.stdout
        result = json.loads((tmp_path / "here/verification.json").read_text())
        assert [entry["id"] for entry in result["checks"]] == [check]
        assert ("  remedy  " in done.stdout) is diagnosed, done.stdout
