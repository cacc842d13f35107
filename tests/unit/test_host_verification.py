"""host_verification on a recorded H200 (tests/fixtures/host_facts/README.md) and on a made-up RTX 5090 host."""

import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.gather import gather
from ansible_collections.blackwell.serving.plugins.module_utils.host_verification import (
    CHECKS,
    GPU_CHECKS,
    STACK_CHECKS,
    Verification,
    Wanted,
    exit_code,
    table,
)

REPO_ROOT = Path(__file__).resolve().parents[2]
ROLE = REPO_ROOT / "roles/host_verification"
UUID = "GPU-00000000-0000-0000-0000-000000000005"
SMI_ROW = (
    f"0, {UUID}, NVIDIA GeForce RTX 5090, 00000000:01:00.0, 0x2B8510DE, 0x8A5C1043, 580.95.05, 12.0, 32607, 498, 1, "
    "32108, Enabled, [N/A], [N/A], 575.00\n"
)
SUMS = {"runtime_cuda": "12.9", "driver_cuda": "13.0", "sums": 1048576}
GPU_SUMS = {"index": 0, "name": "NVIDIA GeForce RTX 5090", "pci_bus_id": "0000:01:00.0", "compute_capability": "12.0"}
GPU_SUMS |= {"total_bytes": 33672855552, "free_bytes": 33135984640, "wrong_sums": 0}
RIGHT = json.dumps(SUMS | {"devices": [GPU_SUMS]}) + "\n"
INFO = {
    "ServerVersion": "29.9.0",
    "Runtimes": {"runc": {}, "nvidia": {}},
    "DefaultRuntime": "runc",
    "DockerRootDir": "/var/lib/docker",
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
}
DRIVER = "580.95.05"
NVCC = "/usr/local/cuda-12.9/bin/nvcc"
CDI_RUN = "docker run --rm --network none --volume /scratch:/verification:ro --device nvidia.com/gpu=all"
RUNTIME_RUN = "docker run --rm --network none --volume /scratch:/verification:ro --runtime nvidia"


@pytest.fixture
def wanted():
    def build(**changes):
        return Wanted(
            **{
                "gpu_required": True,
                "capabilities": {"2b85": "12.0"},
                "capability_without_gpu": "12.0",
                "cuda_version": "12.9",
                "container_image": "debian:trixie-slim",
                "pull": True,
                "minimum": {"docker": "26.1", "compose": "2.26", "toolkit": "1.19.1"},
                "ports": [30001, 30002],
                "project": "serving",
                "disk": {"/var/lib/docker": 50},
                "stack_dir": "/opt/blackwell-serving/stack",
                "stack_required": False,
            }
            | changes
        )

    return build


@pytest.fixture
def converged(fake_host):
    """A made-up host with one RTX 5090 where everything works."""
    device = "/sys/bus/pci/devices/0000:01:00.0"
    return fake_host(
        files={
            f"{device}/vendor": "0x10de\n",
            f"{device}/device": "0x2b85\n",
            f"{device}/class": "0x030000\n",
            "/proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  x\n",
            NVCC: "",
        },
        commands={
            "modinfo nvidia": (0, "version:        580.95.05\nlicense:        Dual MIT/GPL\n", ""),
            "nvidia-smi --query-gpu": (0, SMI_ROW, ""),
            "nvidia-smi --query-compute-apps": (0, "", ""),
            "env -i": (0, "Cuda compilation tools, release 12.9, V12.9.86\n", ""),
            NVCC: (0, "", ""),
            "/scratch/vector_add": (0, RIGHT, ""),
            "docker compose version": (0, "5.5.0\n", ""),
            "docker image inspect": (0, "[]", ""),
            CDI_RUN: (0, f"{UUID}\n{RIGHT}", ""),
            RUNTIME_RUN: (0, f"{UUID}\n{RIGHT}", ""),
            "nvidia-ctk --version": (0, "NVIDIA Container Toolkit CLI version 1.20.0\n", ""),
        },
        docker={"/info": INFO, "/containers/json": []},
        file_systems={"/": {"size": 10**12, "available": 10**11}},
    )


def verify(host, wanted, names=tuple(CHECKS)):
    verification = Verification(host, gather(host), wanted, "/scratch", "/var/run/docker.sock")
    return {check["id"]: check for check in verification.run(names)}, verification


def statuses(host, wanted, *others):
    """Those that are not ok."""
    checks, _ = verify(host, wanted, *others)
    return {name: check["status"] for name, check in checks.items() if check["status"] != "ok"}


def test_host_where_everything_works(converged, wanted):
    checks, verification = verify(converged, wanted())
    assert list(checks) == [name for name in CHECKS if name not in STACK_CHECKS]
    assert statuses(converged, wanted()) == {}
    assert exit_code(checks.values()) == 0
    assert verification.measured == [
        {
            "index": 0,
            "name": "NVIDIA GeForce RTX 5090",
            "pci_bus_id": "0000:01:00.0",
            "total_gib": 31.36,
            "free_gib": 30.86,
        }
    ]
    assert any("-gencode=arch=compute_120,code=sm_120" in line for line in converged.asked)


def without(host, *starts):
    host.commands = {line: answer for line, answer in host.commands.items() if not line.startswith(starts)}


def closed_driver(host):
    host.files["/proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue\n"


def newer_driver_installed(host):
    host.commands["modinfo nvidia"] = (0, "version:        595.91.07\nlicense:        Dual MIT/GPL\n", "")


def other_capability(host):
    host.commands["nvidia-smi --query-gpu"] = (0, SMI_ROW.replace(" 12.0,", " 9.0,"), "")


def second_gpu_fallen_off(host):
    for name, value in {"vendor": "0x10de", "device": "0x2b85", "class": "0x030000"}.items():
        host.files[f"/sys/bus/pci/devices/0000:02:00.0/{name}"] = f"{value}\n"


def newer_cuda_on_path(host):
    host.commands["env -i"] = (0, "Cuda compilation tools, release 13.0, V13.0.88\n", "")


def wrong_sums(host):
    answer = json.dumps(SUMS | {"devices": [GPU_SUMS | {"wrong_sums": 3}]})
    host.commands["/scratch/vector_add"] = (1, answer, "")


def gpu_hidden_from_cuda(host):
    host.commands["/scratch/vector_add"] = (0, json.dumps(SUMS | {"devices": []}), "")


def old_engine(host):
    host.docker["/info"] = INFO | {"ServerVersion": "20.10.24+dfsg1"}


def no_compose(host):
    without(host, "docker compose")


def old_toolkit(host):
    host.commands["nvidia-ctk --version"] = (0, "NVIDIA Container Toolkit CLI version 1.17.8\n", "")


def cdi_of_an_older_driver(host):
    host.files["/var/run/cdi/nvidia.yaml"] = (
        "kind: nvidia.com/gpu\ndevices:\n  - name: all\n# /usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08\n"
    )


def cdi_unknown(host):
    error = 'docker: Error response from daemon: could not select device driver "cdi" with capabilities: [].\n'
    host.commands[CDI_RUN] = (125, "", error)


def no_unified_memory_in_containers(host):
    error = '{"error": "cudaGetDeviceCount: unknown error (cudaErrorUnknown)"}\n'
    host.commands[CDI_RUN] = host.commands[RUNTIME_RUN] = (2, f"{UUID}\n{error}", "")


def runtime_not_registered(host):
    host.docker["/info"] = INFO | {"Runtimes": {"runc": {}}}


def half_installed_package(host):
    host.commands["dpkg-query"] = (1, "iF \tnvidia-kernel-open-dkms\tamd64\t580.95.05-1\n", "")


def port_held_by_another_container(host):
    ports = [{"PublicPort": 30001, "Type": "tcp"}]
    host.docker["/containers/json"] = [{"Id": "1", "Names": ["/web"], "Labels": {}, "Ports": ports}]


def disk_full(host):
    host.file_systems = {"/": {"size": 10**12, "available": 10**9}}


@pytest.mark.parametrize(
    ("break_it", "failed", "unknown"),
    [
        (closed_driver, {"driver_open"}, set()),
        (newer_driver_installed, {"driver_installed"}, set()),
        (other_capability, {"gpu_capability"}, set()),
        (second_gpu_fallen_off, {"gpu_capability"}, set()),
        (newer_cuda_on_path, {"cuda_on_path"}, set()),
        (wrong_sums, {"cuda_runs"}, set()),
        (gpu_hidden_from_cuda, {"cuda_runs"}, set()),
        (old_engine, {"docker_runs"}, set()),
        (no_compose, {"docker_runs"}, set()),
        (old_toolkit, {"container_toolkit"}, set()),
        (cdi_of_an_older_driver, {"docker_cdi"}, set()),
        (cdi_unknown, {"docker_cdi"}, set()),
        (no_unified_memory_in_containers, {"docker_cdi", "docker_runtime"}, set()),
        (runtime_not_registered, {"docker_runtime"}, set()),
        (half_installed_package, {"packages_whole"}, set()),
        (port_held_by_another_container, {"ports"}, set()),
        (disk_full, {"disk_space"}, set()),
    ],
)
def test_what_is_broken_fails_and_nothing_else_does(converged, wanted, break_it, failed, unknown):
    break_it(converged)
    expected = dict.fromkeys(failed, "failed") | dict.fromkeys(unknown, "could_not_check")
    assert statuses(converged, wanted()) == expected
    checks, _ = verify(converged, wanted())
    assert all(checks[name]["remedy"] for name in expected)
    assert exit_code(checks.values()) == 1


def test_driver_that_is_not_loaded_explains_what_depends_on_it(converged, wanted):
    del converged.files["/proc/driver/nvidia/version"]
    converged.files["/sys/module/nouveau/refcnt"] = "1\n"
    checks, _ = verify(converged, wanted())
    assert checks["driver_loaded"]["status"] == "failed"
    assert "nouveau" in checks["driver_loaded"]["remedy"]
    unknown = {name for name, check in checks.items() if check["status"] == "could_not_check"}
    assert unknown == {"driver_open", "driver_installed", "gpu_capability", "cuda_runs", "docker_cdi", "docker_runtime"}
    assert checks["cuda_compiles"]["status"] == "ok", "the PCI id tells what to compile for"


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"modinfo nvidia": (1, "", "modinfo: ERROR: Module nvidia not found.\n")}, "provision"),
        ({}, "Reboot"),
    ],
)
def test_remedy_follows_the_reason_why_no_driver_is_loaded(converged, wanted, state, word):
    del converged.files["/proc/driver/nvidia/version"]
    converged.commands |= state
    checks, _ = verify(converged, wanted(), ["driver_loaded"])
    assert word in checks["driver_loaded"]["remedy"]


def test_image_is_pulled_once_and_a_failed_pull_is_no_failure(converged, wanted):
    converged.commands["docker image inspect"] = (1, "[]", "Error: No such image: debian:trixie-slim\n")
    error = "Error response from daemon: Get https://registry-1.docker.io/v2/: dial tcp: i/o timeout\n"
    converged.commands["docker pull"] = (1, "", error)
    checks, _ = verify(converged, wanted())
    assert {name for name, check in checks.items() if check["status"] != "ok"} == {"docker_cdi", "docker_runtime"}
    assert checks["docker_cdi"]["status"] == "could_not_check"
    assert "i/o timeout" in checks["docker_cdi"]["message"]
    assert sum(line.startswith("docker pull") for line in converged.asked) == 1
    assert exit_code(checks.values()) == 2


def test_image_that_was_pulled_is_named_and_one_that_was_there_is_not(converged, wanted):
    assert verify(converged, wanted())[1].pulled == []
    converged.commands["docker image inspect"] = (1, "[]", "")
    converged.commands["docker pull"] = (0, "", "")
    assert {*verify(converged, wanted())[1].pulled} == {"debian:trixie-slim"}


def test_image_that_may_not_be_pulled_is_not(converged, wanted):
    converged.commands["docker image inspect"] = (1, "[]", "")
    assert statuses(converged, wanted(pull=False)) == dict.fromkeys(["docker_cdi", "docker_runtime"], "could_not_check")
    assert not any(line.startswith("docker pull") for line in converged.asked)


def test_image_with_an_older_c_library_is_no_failure(converged, wanted):
    converged.commands[CDI_RUN] = (1, f"{UUID}\n", "/verification/vector_add: version `GLIBC_2.38' not found\n")
    assert statuses(converged, wanted()) == {"docker_cdi": "could_not_check"}


def test_container_that_sees_another_gpu_fails(converged, wanted):
    converged.commands[CDI_RUN] = (0, f"GPU-other\n{RIGHT}", "")
    assert statuses(converged, wanted()) == {"docker_cdi": "failed"}


def test_gpu_that_the_catalogue_does_not_know(converged, wanted):
    assert statuses(converged, wanted(capabilities={})) == {"gpu_capability": "could_not_check"}


def test_host_without_gpu(fake_host, wanted):
    host = fake_host(docker={"/info": INFO, "/containers/json": []})
    required, _ = verify(host, wanted())
    assert required["gpu_present"]["status"] == "failed"
    assert required["driver_loaded"]["status"] == "could_not_check"
    not_required, _ = verify(host, wanted(gpu_required=False))
    assert set(not_required) == set(CHECKS) - GPU_CHECKS - STACK_CHECKS


def test_driver_without_any_gpu(converged, wanted):
    """A driver that stayed loaded after its card fell off the bus."""
    converged.files = {path: text for path, text in converged.files.items() if not path.startswith("/sys/bus/pci")}
    converged.commands["nvidia-smi --query-gpu"] = (6, "No devices were found\n", "")
    checks, _ = verify(converged, wanted())
    assert {name for name, check in checks.items() if check["status"] == "failed"} == {
        "gpu_present",
        "driver_loaded",
        "cuda_runs",
    }
    assert checks["gpu_capability"]["status"] == "could_not_check"


def test_ports_of_our_own_stack_are_fine(converged, wanted):
    labels = {"com.docker.compose.project": "serving"}
    ports = [{"PublicPort": 30001, "Type": "tcp"}, {"PrivatePort": 9}]
    converged.docker["/containers/json"] = [{"Id": "1", "Names": ["/qwen"], "Labels": labels, "Ports": ports}]
    checks, _ = verify(converged, wanted(), ["ports"])
    assert checks["ports"]["status"] == "ok"
    assert checks["ports"]["message"] == "1 free, 1 held by the project serving"


def test_port_of_our_own_stack_on_the_network_of_the_host_is_fine(converged, wanted):
    service = {"name": "big", "container_name": "big", "port": 30001, "start_order": 1, "nodes": {"rank": 0}}
    converged.files["/opt/blackwell-serving/stack/current/plan.json"] = json.dumps({"services": [service]})
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    converged.files["/proc/net/tcp"] = head + (
        "   0: 0100007F:7531 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n"
    )
    for project, status in (("serving", "ok"), ("other", "failed")):
        labels = {"com.docker.compose.project": project}
        converged.docker["/containers/json"] = [{"Id": "1", "Names": ["/big"], "Labels": labels, "Ports": []}]
        checks, _ = verify(converged, wanted(), ["ports"])
        assert checks["ports"]["status"] == status


def test_port_of_a_process_names_it(converged, wanted):
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   {}: 0100007F:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0\n"
    converged.files["/proc/net/tcp"] = head + row.format(0, 30001, "0A", 4711) + row.format(1, 30002, "01", 4712)
    converged.socket_holders = {"4711": "nginx, process 812"}
    checks, _ = verify(converged, wanted(), ["ports"])
    assert checks["ports"]["status"] == "failed"
    assert "30001 (nginx, process 812)" in checks["ports"]["message"]
    assert "30002" not in checks["ports"]["message"], "a connection from that port is no listener"


def test_recorded_h200(h200_host, wanted, recording):
    """What the program printed on the card, among the facts of its host."""
    folder = "h200_580.159.04_ubuntu2404"
    host = h200_host
    nvcc = "/usr/local/cuda-13.0/bin/nvcc"
    host.commands[nvcc] = (0, "", "")
    host.commands["env -i"] = (0, recording(f"{folder}/nvcc_version.txt"), "")
    host.commands["/scratch/vector_add"] = (0, recording(f"{folder}/vector_add_sm_90.json"), "")
    catalogue = yaml.safe_load((REPO_ROOT / "catalog/gpus.yml").read_text())["gpus"]
    wishes = wanted(cuda_version="13.0", capabilities={"2335": catalogue["h200"]["compute_capability"]})
    names = [name for name in CHECKS if name.startswith(("gpu_", "driver_", "cuda_"))]
    checks, verification = verify(host, wishes, names)
    assert statuses(host, wishes, names) == {"driver_installed": "could_not_check"}, "there was no modinfo"
    assert checks["gpu_capability"]["message"] == "compute capability 9.0, as the catalogue says"
    assert "1,048,576 sums right on 1 GPU" in checks["cuda_runs"]["message"]
    assert [(gpu["name"], gpu["total_gib"]) for gpu in verification.measured] == [("NVIDIA H200", 139.8)]


@pytest.mark.parametrize(
    ("file", "says"),
    [("vector_add_sm_120.json", "cudaErrorNoKernelImageForDevice"), ("vector_add_nodevice.json", "cudaErrorNoDevice")],
)
def test_recorded_errors_of_the_program(converged, wanted, recording, file, says):
    converged.commands["/scratch/vector_add"] = (2, recording(f"h200_580.159.04_ubuntu2404/{file}"), "")
    checks, verification = verify(converged, wanted())
    assert checks["cuda_runs"]["status"] == "failed"
    assert says in checks["cuda_runs"]["message"]
    assert verification.measured == []


def test_program_that_dies_silently(converged, wanted):
    converged.commands["/scratch/vector_add"] = (-11, "", "")
    assert statuses(converged, wanted()) == {"cuda_runs": "failed"}


def test_table_is_aligned_and_says_what_to_do(converged, wanted):
    disk_full(converged)
    checks, _ = verify(converged, wanted())
    lines = table(list(checks.values())).splitlines()
    assert len(lines) == len(checks) + 1
    assert len({line.index(check["message"]) for line, check in zip(lines, checks.values(), strict=False)}) == 1
    assert lines[-2].split()[:2] == ["disk_space", "FAILED"]
    assert lines[-1].split()[:2] == ["->", "Make"]


def test_everyone_names_the_same_checks(run_tool):
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    shown = run_tool("ansible-doc", "--json", "blackwell.serving.host_verification_checks").stdout
    module = json.loads(shown)["blackwell.serving.host_verification_checks"]["doc"]["options"]
    readme = (ROLE / "README.md").read_text()
    assert options["host_verification_checks"]["default"] == list(CHECKS)
    assert module["checks"]["choices"] == list(CHECKS)
    assert [line.split("`")[1] for line in readme.splitlines() if line.startswith("| `")] == list(CHECKS)


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({"host_verification_checks": ["disk_space"], "host_verification_disk_gib": {"/": 0.001}}, 0),
        ({"host_verification_checks": ["disk_space"], "host_verification_disk_gib": {"/": 10**7}}, 1),
        ({"host_verification_checks": ["cuda_runs"]}, 2),
        ({"host_verification_checks": ["disk_space", "cuda_runs"], "cuda_toolkit_enabled": False}, 0),
    ],
)
def test_exit_status_of_tools_verify(run_tool, tmp_path, variables, status):
    """On this machine, with checks whose outcome is known: a program that was never compiled could not run."""
    local = {"ansible_connection": "local", "ansible_become": False, "output_dir": str(tmp_path)}
    local["ansible_python_interpreter"] = "{{ ansible_playbook_python }}"
    done = run_tool("tools/verify", "-i", "here,", "-e", json.dumps(local | variables))
    assert done.returncode == status, done.stdout + done.stderr
    result = json.loads((tmp_path / "here/verification.json").read_text())
    assert result["exit_code"] == status
    assert [check["id"] for check in result["checks"]] == variables["host_verification_checks"][:1]


def test_hosts_that_cannot_be_reached_could_not_be_checked(run_tool, tmp_path):
    """Alone, and beside one where all is well."""
    reachable = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    hosts = {"gone": {"ansible_connection": "no_such_plugin"}, "here": reachable}
    common = {"ansible_become": False, "output_dir": str(tmp_path), "host_verification_checks": ["disk_space"]}
    common["host_verification_disk_gib"] = {"/": 0.001}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
    for limit, status in (("here", 0), ("gone", 2), ("all", 2)):
        done = run_tool("tools/verify", "-i", inventory, "--limit", limit)
        assert done.returncode == status, done.stdout + done.stderr
