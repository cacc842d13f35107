"""Whether a host does what it was provisioned for: each check looks at what the host does, not at what a role wrote.

Runs on the host, under its own Python, 3.9 or newer. A check changes nothing; compiling needs a directory to work in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .finding import COULD_NOT_CHECK, FAILED, OK, Finding
from .host_facts.host import Host, Output
from .host_facts.system import listening_sockets
from .running_stack import container_states, plan_path, read_plan
from .service_verification import services_answer, services_memory, services_up

GIB = 1024**3
SOURCE_NAME, PROGRAM_NAME = "vector_add.cu", "vector_add"
WORK_DIRECTORY_IN_CONTAINER = "/verification"


class Wanted(NamedTuple):
    """What the host is judged by.

    `capabilities`: compute capability by PCI device id. `minimum`: least versions of docker, compose and toolkit.
    `ports`: TCP ports of the host that the Compose project `project` uses or will use. `disk`: GiB that must be
    available, by path. `stack_dir`: where the stack is deployed; `stack_required`: whether there must be one.
    """

    gpu_required: bool
    capabilities: Mapping[str, str]
    capability_without_gpu: str
    cuda_version: str
    container_image: str
    pull: bool
    minimum: Mapping[str, str]
    ports: Sequence[int]
    project: str
    disk: Mapping[str, float]
    stack_dir: str
    stack_required: bool


class Verification:
    """The checks of one host; `facts` are those of gpu_host_facts, `directory` holds the source of the program."""

    def __init__(self, host: Host, facts: Mapping[str, Any], wanted: Wanted, directory: str, docker_socket: str):
        self.host = host
        self.facts = facts
        self.wanted = wanted
        self.directory = directory
        self.docker_socket = docker_socket
        self.measured: list[dict[str, Any]] = []
        self._compiled = False
        self._runs = False
        self._image: Finding | None = None
        self.pulled: list[str] = []
        self._deployed = host.exists(plan_path(wanted.stack_dir))
        self._plan = read_plan(host, wanted.stack_dir)
        self._figures: dict[str, dict[str, Any]] = {service["name"]: {} for service in self._services}

    def run(self, names: Iterable[str]) -> list[dict[str, str]]:
        """The checks of these names that make sense on this host, in the order of CHECKS."""
        asked = set(names)
        if not self.facts["pci"] and not self.wanted.gpu_required:
            asked -= GPU_CHECKS
        if not self._deployed and not self.wanted.stack_required:
            asked -= STACK_CHECKS
        return [{"id": name, **check(self)._asdict()} for name, check in CHECKS.items() if name in asked]

    @property
    def services(self) -> list[dict[str, Any]]:
        """What was found of each service of the deployed plan."""
        return [
            {"name": service["name"], "engine": service["engine"], **self._figures[service["name"]]}
            for service in self._services
            if self._figures[service["name"]]
        ]

    @property
    def _services(self) -> list[dict[str, Any]]:
        return sorted(self._plan["services"], key=lambda service: service["start_order"]) if self._plan else []

    def gpu_present(self) -> Finding:
        ids = [gpu["device"] for gpu in self.facts["pci"]]
        if not ids:
            return Finding(
                FAILED,
                "no NVIDIA GPU on the PCI bus",
                "Check that the card sits and has power; in a virtual machine, that it is passed through.",
            )
        return Finding(OK, f"{_count(ids, 'NVIDIA GPU')} on the PCI bus: {', '.join(ids)}")

    def driver_loaded(self) -> Finding:
        loaded = self.facts["driver"]["loaded"]
        if loaded and not self.facts["nvidia_smi_error"]:
            return Finding(OK, f"driver {loaded['version']} is loaded and answers")
        if loaded:
            said = _last_line(self.facts["nvidia_smi_error"])
            return Finding(
                FAILED,
                f"driver {loaded['version']} is loaded, but nvidia-smi says: {said}",
                "Reboot if the driver was just changed; else read: journalctl -k -g NVRM",
            )
        if not self.facts["pci"]:
            return Finding(COULD_NOT_CHECK, "there is no GPU to drive", "See gpu_present.")
        return Finding(FAILED, "no driver is loaded", self._why_not_loaded())

    def _why_not_loaded(self) -> str:
        if self.facts["nouveau_loaded"]:
            return "nouveau holds the GPU: run playbooks/provision.yml and reboot."
        if not self.facts["driver"]["installed"]:
            return "None is installed for the running kernel: run playbooks/provision.yml."
        if self.facts["secure_boot"] == "enabled" and self.facts["mok"]["enrolled"] is not True:
            return "Secure Boot refuses modules whose key is not enrolled: enrol it at the console at the next boot."
        return "Reboot; if it is still not loaded, read: journalctl -k -g 'NVRM|nvidia'"

    def driver_open(self) -> Finding:
        loaded = self.facts["driver"]["loaded"]
        if not loaded:
            return Finding(COULD_NOT_CHECK, "no driver is loaded", "See driver_loaded.")
        if loaded["flavour"] == "open":
            return Finding(OK, "the open kernel modules are loaded")
        return Finding(
            FAILED,
            f"driver {loaded['version']} has closed kernel modules, which Blackwell GPUs refuse",
            "Run playbooks/provision.yml and reboot.",
        )

    def driver_installed(self) -> Finding:
        loaded, installed = self.facts["driver"]["loaded"], self.facts["driver"]["installed"]
        if not loaded:
            return Finding(COULD_NOT_CHECK, "no driver is loaded", "See driver_loaded.")
        if not installed:
            return Finding(
                COULD_NOT_CHECK,
                f"{loaded['version']} is loaded, but modinfo knows no module for the running kernel",
                "Where the driver came with the machine's image, nothing; else run playbooks/provision.yml.",
            )
        if loaded["version"] != installed["version"]:
            return Finding(
                FAILED, f"{loaded['version']} is loaded, {installed['version']} is installed", "Reboot the host."
            )
        return Finding(OK, f"the installed driver, {installed['version']}, is the one that is loaded")

    def gpu_capability(self) -> Finding:
        """Every GPU on the bus answers, with the compute capability that its PCI id promises."""
        answers = {gpu["pci_bus_id"]: gpu["compute_capability"] for gpu in self.facts["gpus"]}
        if not self.facts["driver"]["loaded"]:
            return Finding(COULD_NOT_CHECK, "no driver is loaded", "See driver_loaded.")
        if not self.facts["pci"]:
            return Finding(COULD_NOT_CHECK, "there is no GPU", "See gpu_present.")
        wrong, unknown = [], []
        for gpu in self.facts["pci"]:
            promised, found = self.wanted.capabilities.get(gpu["device"]), answers.get(gpu["address"])
            if gpu["address"] not in answers:
                wrong.append(f"{gpu['address']} ({gpu['device']}) does not answer")
            elif promised is None:
                unknown.append(f"{gpu['device']} at {gpu['address']} ({found})")
            elif found != promised:
                wrong.append(f"{gpu['address']} ({gpu['device']}) has {found}, not {promised}")
        if wrong:
            return Finding(
                FAILED, "; ".join(wrong), "Read: journalctl -k -g 'NVRM|Xid'; a GPU that fell off needs a reboot."
            )
        if unknown:
            return Finding(
                COULD_NOT_CHECK, f"not in the catalogue: {', '.join(unknown)}", "Add it to catalog/gpus.yml."
            )
        found = sorted({answers[gpu["address"]] for gpu in self.facts["pci"]})
        return Finding(OK, f"compute capability {', '.join(found)}, as the catalogue says")

    def _target_capabilities(self) -> list[str]:
        from_driver = {gpu["compute_capability"] for gpu in self.facts["gpus"]}
        from_bus = {self.wanted.capabilities.get(gpu["device"]) for gpu in self.facts["pci"]}
        return sorted((from_driver or from_bus) - {None}) or [self.wanted.capability_without_gpu]

    def cuda_on_path(self) -> Finding:
        """A login shell finds nvcc of the wanted version."""
        answer = self.host.run(["env", "-i", "HOME=/root", "TERM=dumb", "bash", "--login", "-c", "nvcc --version"])
        release = re.search(r"\brelease (\d+\.\d+)", answer.stdout)
        remedy = f"Run playbooks/provision.yml; the toolkit is expected in /usr/local/cuda-{self.wanted.cuda_version}."
        if not release:
            return Finding(FAILED, "a login shell finds no nvcc", remedy)
        if release[1] != self.wanted.cuda_version:
            return Finding(FAILED, f"a login shell finds nvcc {release[1]}, not {self.wanted.cuda_version}", remedy)
        return Finding(OK, f"a login shell finds nvcc {release[1]}")

    def cuda_compiles(self) -> Finding:
        nvcc = f"/usr/local/cuda-{self.wanted.cuda_version}/bin/nvcc"
        capabilities = self._target_capabilities()
        code = [f"sm_{capability.replace('.', '')}" for capability in capabilities]
        targets = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in code]
        # The C++ libraries are linked in, so that the program runs in small containers too.
        libraries = ["-Xcompiler=-static-libgcc", "-Xcompiler=-static-libstdc++"]
        files = [f"{self.directory}/{SOURCE_NAME}", "-o", f"{self.directory}/{PROGRAM_NAME}"]
        answer = self.host.run([nvcc, "-O2", *targets, *libraries, *files], timeout=240)
        if answer.status == 0:
            self._compiled = True
            return Finding(OK, f"CUDA {self.wanted.cuda_version} compiles for {', '.join(code)}")
        if answer.status is None and not self.host.exists(nvcc):
            return Finding(FAILED, f"there is no {nvcc}", "Run playbooks/provision.yml.")
        return Finding(
            FAILED,
            f"nvcc {self.wanted.cuda_version} does not compile for {', '.join(code)}: {_last_line(_text(answer))}",
            "Check that g++ is installed, in a version that this CUDA takes.",
        )

    def cuda_runs(self) -> Finding:
        """The compiled program adds right on every GPU."""
        if not self._compiled:
            return Finding(COULD_NOT_CHECK, "there is no compiled program", "See cuda_compiles.")
        if not self.facts["driver"]["loaded"]:
            return Finding(COULD_NOT_CHECK, "no driver is loaded", "See driver_loaded.")
        answer = self.host.run([f"{self.directory}/{PROGRAM_NAME}"], timeout=120)
        finding, self.measured = self._judge_sums(answer)
        self._runs = finding.status == OK
        return finding

    def _judge_sums(self, answer: Output) -> tuple[Finding, list[dict[str, Any]]]:
        remedy = "Read: journalctl -k -g 'NVRM|Xid'; run nvidia-smi -q."
        report = _report(answer.stdout)
        if report is None:
            return Finding(FAILED, f"the program ended without a result: {_last_line(_text(answer))}", remedy), []
        if "error" in report:
            return Finding(FAILED, report["error"], remedy), []
        devices = report["devices"]
        wrong = [
            f"GPU {device['index']}: {device['wrong_sums']} wrong sums" for device in devices if device["wrong_sums"]
        ]
        if wrong:
            return Finding(FAILED, "; ".join(wrong), "Take the GPU out of service: it calculates wrongly."), []
        if len(devices) != len(self.facts["gpus"]):
            return Finding(FAILED, f"CUDA sees {len(devices)} of {_count(self.facts['gpus'], 'GPU')}", remedy), []
        measured = [
            {
                "index": device["index"],
                "name": device["name"],
                "pci_bus_id": device["pci_bus_id"],
                "total_gib": round(device["total_bytes"] / GIB, 2),
                "free_gib": round(device["free_bytes"] / GIB, 2),
            }
            for device in devices
        ]
        sums = f"{report['sums']:,} sums right on {_count(devices, 'GPU')}"
        return Finding(OK, f"{sums}, {', '.join(str(gpu['total_gib']) for gpu in measured)} GiB visible"), measured

    def docker_runs(self) -> Finding:
        docker = self.facts["docker"]
        if not docker["running"]:
            return Finding(
                FAILED, "no Docker engine answers", "Read: systemctl status docker; run playbooks/provision.yml."
            )
        old = [
            f"{name} {found or 'is missing'}{f' is older than {least}' if found else ''}"
            for name, found, least in (
                ("Engine", docker["version"], self.wanted.minimum["docker"]),
                ("Compose", docker["compose_version"], self.wanted.minimum["compose"]),
            )
            if not found or _version(found) < _version(least)
        ]
        if old:
            return Finding(FAILED, ", ".join(old), "Run playbooks/provision.yml.")
        return Finding(OK, f"Docker Engine {docker['version']} with Compose {docker['compose_version']}")

    def container_toolkit(self) -> Finding:
        version, least = self.facts["toolkit"]["version"], self.wanted.minimum["toolkit"]
        if not version:
            return Finding(FAILED, "NVIDIA's container toolkit is not installed", "Run playbooks/provision.yml.")
        if _version(version) < _version(least):
            return Finding(FAILED, f"{version} is older than {least}", "Run playbooks/provision.yml.")
        return Finding(OK, f"version {version}")

    def docker_cdi(self) -> Finding:
        """A container that asks for every GPU as CDI device sees and uses them."""
        driver = self.facts["driver"]["loaded"]
        stale = [
            f"{spec['path']} is for driver {spec['driver_version']}"
            for spec in self.facts["cdi"]["specs"]
            if spec["kind"] == "nvidia.com/gpu" and driver and spec["driver_version"] not in (None, driver["version"])
        ]
        if stale:
            return Finding(FAILED, ", ".join(stale), "Run: systemctl restart nvidia-cdi-refresh.service")
        return self._container(["--device", "nvidia.com/gpu=all"])

    def docker_runtime(self) -> Finding:
        """The same for the runtime `nvidia`."""
        if self.facts["docker"]["running"] and "nvidia" not in self.facts["docker"]["runtimes"]:
            return Finding(FAILED, "Docker knows no runtime nvidia", "Run playbooks/provision.yml.")
        variables = ["--env", "NVIDIA_VISIBLE_DEVICES=all", "--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
        return self._container(["--runtime", "nvidia", *variables])

    def _container(self, gpu_options: Sequence[str]) -> Finding:
        if not self.facts["docker"]["running"]:
            return Finding(COULD_NOT_CHECK, "no Docker engine answers", "See docker_runs.")
        if not self.facts["gpus"]:
            return Finding(COULD_NOT_CHECK, "no GPU answers on the host", "See driver_loaded.")
        missing = self._missing_image()
        if missing:
            return missing
        command = "nvidia-smi --query-gpu=uuid --format=csv,noheader"
        if self._runs:
            command += f" && {WORK_DIRECTORY_IN_CONTAINER}/{PROGRAM_NAME}"
        options = ["--rm", "--network", "none", "--volume", f"{self.directory}:{WORK_DIRECTORY_IN_CONTAINER}:ro"]
        image = self.wanted.container_image
        answer = self.host.run(
            ["docker", "run", *options, *gpu_options, "--entrypoint", "/bin/sh", image, "-c", command], timeout=180
        )
        seen = set(re.findall(r"^GPU-\S+", answer.stdout, re.MULTILINE))
        expected = {gpu["uuid"] for gpu in self.facts["gpus"]}
        if seen != expected:
            what = f"the container sees {len(seen)} of {_count(expected, 'GPU')}"
            said = _last_line(_text(answer)) if answer.status != 0 else ""
            remedy = "Read: nvidia-ctk cdi list; journalctl -u nvidia-cdi-refresh -u docker"
            return Finding(FAILED, f"{what}: {said}" if said else what, remedy)
        if not self._runs:
            return Finding(OK, f"a container sees {_count(expected, 'GPU')}; no program was run there")
        if "GLIBC_" in answer.stderr:
            return Finding(
                COULD_NOT_CHECK,
                f"a container sees {_count(expected, 'GPU')}, but {image} is too old for the program built here",
                "Set host_verification_container_image to a newer image.",
            )
        sums, _ = self._judge_sums(answer)
        if sums.status != OK:
            return Finding(FAILED, f"in a container: {sums.message}", "Check that /dev/nvidia-uvm exists on the host.")
        return Finding(OK, f"a container sees {_count(expected, 'GPU')} and calculates on them")

    def _missing_image(self) -> Finding | None:
        """Why the image is not there, after pulling it where that is allowed."""
        image = self.wanted.container_image
        if self._image is None and self.host.run(["docker", "image", "inspect", image]).status != 0:
            remedy = (
                f"Run on the host: docker pull {image}; or set host_verification_container_image to one that it has."
            )
            if not self.wanted.pull:
                self._image = Finding(COULD_NOT_CHECK, f"the image {image} is not on the host", remedy)
            else:
                pulled = self.host.run(["docker", "pull", "--quiet", image], timeout=600)
                if pulled.status == 0:
                    self.pulled.append(image)
                else:
                    said = _last_line(_text(pulled))
                    self._image = Finding(COULD_NOT_CHECK, f"the image {image} could not be had: {said}", remedy)
        return self._image

    def packages_whole(self) -> Finding:
        halves = self.facts["half_installed"]
        if halves:
            return Finding(
                FAILED, f"half installed: {', '.join(sorted(halves))}", "Run: dpkg --configure -a; apt-get -f install"
            )
        return Finding(OK, "no package of driver, CUDA, Docker or kernel is half installed")

    def ports(self) -> Finding:
        """Each port is free, or published by a container of our project."""
        if not self.wanted.ports:
            return Finding(OK, "none is declared")
        published = self._published_ports()
        listening = self._listening_ports()
        ours, taken = [], []
        for port in self.wanted.ports:
            if port in published:
                name, project = published[port]
                (ours if project == self.wanted.project else taken).append(
                    str(port) if project == self.wanted.project else f"{port} (container {name})"
                )
            elif port in listening:
                taken.append(f"{port} ({listening[port]})")
        if taken:
            return Finding(
                FAILED, f"taken by others: {', '.join(taken)}", "Stop what holds it, or declare another port."
            )
        free = len(self.wanted.ports) - len(ours)
        return Finding(OK, f"{free} free, {len(ours)} held by the project {self.wanted.project}")

    def _published_ports(self) -> dict[int, tuple[str, str | None]]:
        """Name and Compose project of the running container that publishes a TCP port, or is to listen on it itself."""
        (containers,) = self.host.docker_api(self.docker_socket, ["/containers/json"])
        on_host = {service["container_name"]: service["port"] for service in self._services if service.get("nodes")}
        found = {}
        for container in containers or []:
            name = (container.get("Names") or [""])[0].lstrip("/")
            project = (container.get("Labels") or {}).get("com.docker.compose.project")
            ports = [port.get("PublicPort") for port in container.get("Ports") or [] if port.get("Type") == "tcp"]
            if project == self.wanted.project:
                ports.append(on_host.get(name))
            found.update({port: (name, project) for port in ports if port})
        return found

    def _listening_ports(self) -> dict[int, str]:
        """The process that listens on a TCP port."""
        tables = (self.host.read(f"/proc/net/{name}") or "" for name in ("tcp", "tcp6"))
        sockets = {port: inode for text in tables for port, inode in listening_sockets(text).items()}
        wanted = {port: inode for port, inode in sockets.items() if port in self.wanted.ports}
        owners = self.host.socket_owners(wanted.values()) if wanted else {}
        return {port: owners.get(inode, "a process that is not visible") for port, inode in wanted.items()}

    def disk_space(self) -> Finding:
        short, enough = [], []
        for path, least in sorted(self.wanted.disk.items()):
            found = self.host.file_system(path)
            available = found.available / GIB if found else 0
            (enough if available >= least else short).append(f"{path} has {available:.0f} of {least:g} GiB")
        if short:
            return Finding(FAILED, f"too little is available: {', '.join(short)}", "Make room: docker system df; df -h")
        return Finding(OK, ", ".join(enough))

    def _nothing_deployed(self) -> Finding:
        path = plan_path(self.wanted.stack_dir)
        if self._deployed:
            return Finding(COULD_NOT_CHECK, f"{path} is not a plan that can be read", "Run playbooks/deploy.yml.")
        return Finding(COULD_NOT_CHECK, f"nothing is deployed: there is no {path}", "Run playbooks/deploy.yml.")

    def services_up(self) -> Finding:
        if not self._services:
            return self._nothing_deployed()
        if not self.facts["docker"]["running"]:
            return Finding(COULD_NOT_CHECK, "no Docker engine answers", "See docker_runs.")
        names = [service["container_name"] for service in self._services]
        return services_up(self._services, container_states(self.host, self.docker_socket, names), self._figures)

    def services_answer(self) -> Finding:
        return services_answer(self._services, self._figures) if self._services else self._nothing_deployed()

    def services_memory(self) -> Finding:
        if not self._services:
            return self._nothing_deployed()
        return services_memory(self._services, self._plan["gpus"], self.facts["gpus"], self._figures)


Check = Callable[[Verification], Finding]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        Verification.gpu_present,
        Verification.driver_loaded,
        Verification.driver_open,
        Verification.driver_installed,
        Verification.gpu_capability,
        Verification.cuda_on_path,
        Verification.cuda_compiles,
        Verification.cuda_runs,
        Verification.docker_runs,
        Verification.container_toolkit,
        Verification.docker_cdi,
        Verification.docker_runtime,
        Verification.packages_whole,
        Verification.ports,
        Verification.disk_space,
        Verification.services_up,
        Verification.services_answer,
        Verification.services_memory,
    )
}
# Left out where no stack is deployed and none is required.
STACK_CHECKS = {"services_up", "services_answer", "services_memory"}
# Left out where there is no GPU and none is required.
GPU_CHECKS = {
    "gpu_present",
    "driver_loaded",
    "driver_open",
    "driver_installed",
    "gpu_capability",
    "cuda_runs",
    "container_toolkit",
    "docker_cdi",
    "docker_runtime",
}


def exit_code(checks: Iterable[Mapping[str, str]]) -> int:
    """0: all ok; 1: at least one failed; 2: none failed, but one could not be checked."""
    statuses = {check["status"] for check in checks}
    return 1 if FAILED in statuses else 2 if COULD_NOT_CHECK in statuses else 0


def table(checks: Sequence[Mapping[str, str]]) -> str:
    """The checks in aligned columns, and under each that is not ok what to do."""
    width = max((len(check["id"]) for check in checks), default=0)
    lines = []
    for check in checks:
        status = {OK: "ok", FAILED: "FAILED", COULD_NOT_CHECK: "not checked"}[check["status"]]
        lines.append(f"{check['id']:<{width}}  {status:<11}  {check['message']}")
        if check["remedy"]:
            lines.append(f"{'':<{width}}  {'':<11}  -> {check['remedy']}")
    return "\n".join(lines)


def _report(stdout: str) -> dict[str, Any] | None:
    """What the program printed, as the last line."""
    try:
        report = json.loads(stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return report if isinstance(report, dict) else None


def _version(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version: 20.10.24+dfsg1 is (20, 10, 24)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _text(answer: Output) -> str:
    return f"{answer.stdout}\n{answer.stderr}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def _count(things: Iterable[Any], name: str) -> str:
    number = len(list(things))
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
