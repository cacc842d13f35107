"""Hosts that say what was recorded, or what a test makes up."""

import fnmatch
import importlib.util
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils import compose_runner
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import DockerProblem

RECORDINGS = Path(__file__).resolve().parents[1] / "fixtures/host_facts"


class FakeHost:
    """Answers as `host_facts.host.Host` does, from dictionaries.

    `commands`: by command line or its first words, (status, standard output, standard error). `file_systems`: by mount
    point, {size, available}. `docker`: answers of the Docker engine's API by path. `socket_holders`: by inode.
    """

    def __init__(
        self, files=None, links=None, commands=None, file_systems=None, docker=None, socket_holders=None, **system
    ):
        self.files: dict[str, str | bytes] = dict(files or {})
        self.links: dict[str, str] = dict(links or {})
        self.commands: dict[str, tuple[int | None, str, str]] = dict(commands or {})
        self.file_systems = file_systems or {"/": {"size": 10**12, "available": 10**11}}
        self.docker: dict[str, Any] = dict(docker or {})
        self.system = {"kernel_release": "6.12.57+deb13-amd64", "machine": "x86_64"} | system
        self.socket_holders: dict[str, str] = dict(socket_holders or {})
        self.asked: list[str] = []

    def read_bytes(self, path):
        content = self.files.get(path)
        return content.encode() if isinstance(content, str) else content

    def read(self, path):
        content = self.read_bytes(path)
        return None if content is None else content.decode()

    def _paths(self):
        for path in [*self.files, *self.links]:
            while path != "/":
                yield path
                path = posixpath.dirname(path)

    def exists(self, path):
        return path in self._paths()

    def glob(self, pattern):
        depth = pattern.count("/")
        return sorted({path for path in self._paths() if path.count("/") == depth and fnmatch.fnmatch(path, pattern)})

    def real_path(self, path):
        return self.links.get(path, path)

    def which(self, command):
        return f"/usr/bin/{command}" if any(line.split()[0] == command for line in self.commands) else None

    def kernel_release(self):
        return self.system["kernel_release"]

    def machine(self):
        return self.system["machine"]

    def file_system(self, path):
        from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import FileSystem

        while path not in self.file_systems:
            path = posixpath.dirname(path)
        return FileSystem(path, **self.file_systems[path])

    def run(self, command, timeout=20):
        from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Output

        line = " ".join(command)
        self.asked.append(line)
        known = max((start for start in self.commands if line.startswith(start)), key=len, default=None)
        return Output(None, "", f"{command[0]} is not installed") if known is None else Output(*self.commands[known])

    def run_all(self, commands):
        return {name: self.run(command) for name, command in commands.items()}

    def docker_api(self, socket_path, paths, timeout=10):
        return [self.docker.get(path) for path in paths]

    def socket_owners(self, inodes):
        return {inode: self.socket_holders[inode] for inode in inodes if inode in self.socket_holders}


@pytest.fixture(scope="session")
def recording() -> Callable[[str], str]:
    """The text of a file in tests/fixtures/host_facts."""
    return lambda name: (RECORDINGS / name).read_text("utf-8")


@pytest.fixture
def fake_host() -> type[FakeHost]:
    return FakeHost


@pytest.fixture
def h200_host(recording) -> FakeHost:
    """The recorded host with one H200."""
    folder = "h200_580.159.04_ubuntu2404"
    host = yaml.safe_load(recording(f"{folder}/host.yml"))
    files = {path: recording(f"{folder}/{name}") for path, name in host["files"].items()}
    files |= dict.fromkeys(host["empty_files"], "")
    links = dict(host["links"])
    for line in recording(f"{folder}/{host['pci']}").splitlines():
        address, name, *value = line.split()
        if name == "driver" and value:
            links[f"/sys/bus/pci/devices/{address}/driver"] = posixpath.normpath(
                posixpath.join("/sys/bus/pci/devices", value[0])
            )
        elif value:
            files[f"/sys/bus/pci/devices/{address}/{name}"] = f"{value[0]}\n"
    commands = {c["command"]: (c["status"], recording(f"{folder}/{c['stdout']}"), "") for c in host["commands"]}
    return FakeHost(
        files,
        links,
        commands,
        host["file_systems"],
        kernel_release=host["kernel_release"],
        machine=host["machine"],
    )


@pytest.fixture(scope="session")
def write_gpu_code():
    """The module molecule/lab/write_gpu_code.py, which makes up libraries with GPU code."""
    path = Path(__file__).resolve().parents[2] / "molecule/lab/write_gpu_code.py"
    spec = importlib.util.spec_from_file_location("write_gpu_code", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def as_on_a_host(monkeypatch):
    """Modules that a test runs in this process warn as on a host, where nothing of Ansible's control node is loaded."""
    from ansible.module_utils import _internal

    monkeypatch.setattr(_internal, "is_controller", False)


class MadeUpDocker:
    """An engine and a Compose as `stack_docker.StackDocker` uses them; `up` reads the Compose files for real.

    `refuses`: what does not work once; `crashing`: services that do not stay up; `done`: what was asked for.
    """

    def __init__(self, project: str):
        self.project, self.socket = project, "/nowhere"
        self.boxes: dict[str, dict[str, Any]] = {}
        self.there: set[str] | None = None  # images, None: all
        self.digests: dict[str, str] = {}
        self.refuses, self.crashing, self.done = set(), set(), []
        self.host = self

    def answers(self):
        return True

    def answers_again(self):
        return True

    def docker_api(self, _, paths):
        reference = paths[0].removeprefix("/images/").removesuffix("/json")
        digest = self.digests.get(reference)
        return [{"Id": "sha256:1", "RepoDigests": [f"{reference.partition(':')[0]}@{digest}"] if digest else []}]

    def images(self, references):
        return {name: "sha256:1" if self.there is None or name in self.there else None for name in references}

    def pull(self, reference):
        self.done.append(f"pull {reference}")
        self._refuse("pull", "manifest unknown")

    def containers(self):
        return list(self.boxes.values())

    def container(self, identity):
        return {"RestartCount": 4 if identity.split("-")[0] in self.crashing else 0}

    def log(self, identity, tail=None):
        return [("now", f"last words of {identity.split('-')[0]}")]

    def remove(self, identities):
        self.boxes = {name: box for name, box in self.boxes.items() if box["Id"] not in identities}

    def down(self, volumes):
        self.done.append("down, with volumes" if volumes else "down")

    def up(self, files, timeout):
        self.done.append("up")
        self._refuse("up", "container exited (1)")
        wanted = yaml.safe_load(Path(files[1]).read_text())["services"]
        for name, service in wanted.items():
            before = self.boxes.get(name)
            if before and before["Config"]["Labels"].items() >= service["labels"].items():
                continue
            number = int(before["Id"].split("-")[1]) + 1 if before else 1
            labels = {"com.docker.compose.project": self.project, "com.docker.compose.service": name}
            state = {"Status": "running", "Health": {"Status": "" if name in self.crashing else "healthy"}}
            config = {"Labels": labels | service["labels"]}
            self.boxes[name] = {
                "Id": f"{name}-{number}", "Name": f"/{name}", "Image": "sha256:1", "Config": config, "State": state
            }  # fmt: skip
        self.boxes = {name: box for name, box in self.boxes.items() if name in wanted}

    def execute(self, identity, command):
        self.done.append(f"in {identity}: {' '.join(command)}")
        self._refuse("check", "line 1: what?")

    def execute_apart(self, files, service, command):
        self.done.append(f"apart, {service}: {' '.join(command)}")
        self._refuse("check", "line 1: what?")

    def signal(self, identity, name):
        self.done.append(f"{name} to {identity}")

    def _refuse(self, action, words):
        if action in self.refuses:
            self.refuses.discard(action)
            raise DockerProblem(words)


@pytest.fixture
def made_up_docker(monkeypatch) -> Callable[[str], MadeUpDocker]:
    monkeypatch.setattr(compose_runner, "load_python_on_whales", lambda venv: None)
    monkeypatch.setattr(compose_runner, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(compose_runner, "ASK_SECONDS", 0.01)
    return MadeUpDocker
