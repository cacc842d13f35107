"""What a stack's deployment asks and tells Docker: states over the engine's socket, changes by Compose.

Compose is driven through python-on-whales, which is needed only where something changes. Runs on the host, under
Python 3.9 or newer.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from .host_facts.host import Host
from .stack_steps import PROJECT_LABEL

STOP_SECONDS = 30
# How long a restart of dockerd may take; with live-restore, containers run on meanwhile.
ENGINE_BACK_SECONDS = 120
APART_SECONDS = 60
_ENGINE_GONE = re.compile(
    r"Cannot connect to the Docker daemon|error during connect|connection (?:reset|refused)|broken pipe|\bEOF$"
)
_TIMED = re.compile(r"^(\d{4}-\d\d-\d\dT\S+Z) ?(.*)$")


class DockerProblem(Exception):
    """Docker did not do what it was told; the message holds its own words."""


def load_python_on_whales(venv: str) -> None:
    """Make it importable from its environment, which has to be of the Python that runs this; else DockerProblem.

    Not by Ansible's respawn_module: that writes all parameters into a pipe that nobody reads yet, and waits forever
    where they are larger than the pipe (64 KiB on Linux).
    """
    release = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sys.path[:0] = glob.glob(os.path.join(venv, "lib", release, "site-packages"))
    try:
        import python_on_whales  # noqa: F401
    except ImportError as problem:
        raise DockerProblem(
            f"{venv} has no python-on-whales for {release}, which changes need ({problem}): run "
            "playbooks/provision.yml. Nothing was changed."
        ) from None


class StackDocker:
    def __init__(self, host: Host, project: str, socket: str = "/var/run/docker.sock") -> None:
        self.host, self.project, self.socket = host, project, socket

    # ---- reading ----

    def answers(self) -> bool:
        return self.host.docker_api(self.socket, ["/version"])[0] is not None

    def answers_again(self, timeout: float = ENGINE_BACK_SECONDS) -> bool:
        """Wait for an engine that is starting anew."""
        end = time.monotonic() + timeout
        while not self.answers():
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        return True

    def containers(self) -> list[dict[str, Any]]:
        """All containers of this host as the engine describes them, also those that don't run."""
        (listed,) = self.host.docker_api(self.socket, ["/containers/json?all=1"])
        paths = [f"/containers/{container['Id']}/json" for container in listed or []]
        return [answer for answer in self.host.docker_api(self.socket, paths) if answer]

    def container(self, identity: str) -> dict[str, Any] | None:
        return self.host.docker_api(self.socket, [f"/containers/{identity}/json"])[0]

    def container_of(self, service: str) -> dict[str, Any] | None:
        filters = quote(
            json.dumps({"label": [f"{PROJECT_LABEL}={self.project}", f"com.docker.compose.service={service}"]})
        )
        (listed,) = self.host.docker_api(self.socket, [f"/containers/json?all=1&filters={filters}"])
        return self.container(listed[0]["Id"]) if listed else None

    def images(self, references: Iterable[str]) -> dict[str, str | None]:
        """Image id on this host by reference; None where it is missing."""
        wanted = list(dict.fromkeys(references))
        answers = self.host.docker_api(self.socket, [f"/images/{quote(reference)}/json" for reference in wanted])
        return {reference: answer["Id"] if answer else None for reference, answer in zip(wanted, answers)}

    def log(self, identity: str, since: str = "", tail: int | None = None) -> list[tuple[str, str]]:
        """(time, line) of a container's log in order of time; `since` is left out itself. Times are RFC 3339."""
        options = ["--timestamps", *(["--since", since] if since else []), *(["--tail", str(tail)] if tail else [])]
        answer = self.host.run(["docker", "logs", *options, identity])
        matches = (_TIMED.match(line) for line in [*answer.stdout.splitlines(), *answer.stderr.splitlines()])
        timed = sorted((match[1], match[2]) for match in matches if match)
        return [(moment, line) for moment, line in timed if moment > since]

    def exit_statuses(self, identity: str, since: str) -> list[str]:
        """Of each end of a container since that time; its state forgets them when Docker starts it again."""
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
        filters = ["--filter", f"container={identity}", "--filter", "event=die"]
        form = ["--format", "{{.Actor.Attributes.exitCode}}"]
        return self.host.run(["docker", "events", "--since", since, "--until", until, *filters, *form]).stdout.split()

    def gpu_table(self) -> list[str]:
        """Memory of each GPU, and of each process on it, as nvidia-smi tells; its error where it cannot."""
        gpus = self.host.run(
            ["nvidia-smi", "--query-gpu=index,name,memory.used,memory.free,memory.total", "--format=csv"]
        )
        processes = self.host.run(
            ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv"]
        )
        return (gpus.stdout or gpus.stderr).strip().splitlines() + processes.stdout.strip().splitlines()

    # ---- changing ----

    def compose(self, files: Sequence[str]) -> Any:
        from python_on_whales import DockerClient

        return DockerClient(compose_files=list(files), compose_project_name=self.project)

    def start(self, files: Sequence[str], service: str) -> None:
        """Create the service's container if there is none, and start it; nothing else.

        With its dependencies, which run already: without them Compose 2.26 gives the container another hash than
        `docker compose up` does, which would then make it anew.
        """
        self._do(
            lambda: self.compose(files).compose.up([service], detach=True, recreate=False, quiet=True, pull="never")
        )

    def remove(self, identities: Sequence[str]) -> None:
        """Stop these containers, all at once, and remove them with their anonymous volumes."""
        if identities:
            client = self.compose([])
            self._do(lambda: client.container.stop(list(identities), time=STOP_SECONDS))
            self._do(lambda: client.container.remove(list(identities), force=True, volumes=True))

    def stop(self, identities: Sequence[str]) -> None:
        if identities:
            self._do(lambda: self.compose([]).container.stop(list(identities), time=STOP_SECONDS))

    def down(self, volumes: bool) -> None:
        """Remove the project's network, and its volumes where asked."""
        self._do(lambda: self.compose([]).compose.down(volumes=volumes, quiet=True))

    def up(self, files: Sequence[str], timeout: int) -> None:
        """Bring the whole project to its file, and wait until all of it runs and is healthy."""
        self._do(
            lambda: self.compose(files).compose.up(
                detach=True, remove_orphans=True, quiet=True, pull="never", wait=True, wait_timeout=timeout
            )
        )

    def execute(self, identity: str, command: Sequence[str]) -> None:
        """Run a command in a container; DockerProblem with its own words where its status is not 0."""
        self._do(lambda: self.compose([]).container.execute(identity, list(command)))

    def execute_apart(self, files: Sequence[str], service: str, command: Sequence[str]) -> None:
        """As `execute`, in a container of the service that is made for it alone and goes again."""
        paths = [word for path in files for word in ("--file", path)]
        words = ["docker", "compose", "--project-name", self.project, *paths, "run", "--rm", "--no-deps", "--no-TTY"]
        done = self.host.run([*words, "--entrypoint", command[0], service, *command[1:]], timeout=APART_SECONDS)
        if done.status != 0:
            raise DockerProblem("\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]))

    def signal(self, identity: str, name: str) -> None:
        self._do(lambda: self.compose([]).container.kill(identity, signal=name))

    def pull(self, reference: str) -> None:
        self._do(lambda: self.compose([]).image.pull(reference, quiet=True))

    def _do(self, action: Any) -> None:
        """Do it; once more where the engine went away meanwhile, which is no harm, as each action may be repeated."""
        from python_on_whales.exceptions import DockerException

        for again in (True, False):
            try:
                action()
                return
            except DockerException as problem:
                said = (problem.stderr or problem.stdout or str(problem)).strip()
                if not (again and _ENGINE_GONE.search(said) and self.answers_again()):
                    raise DockerProblem("\n".join(said.splitlines()[-5:])) from problem


def published(service: Mapping[str, Any]) -> str:
    """Address of a planned service on this host."""
    address = service["bind_address"]
    return f"http://{'127.0.0.1' if address in ('0.0.0.0', '::') else address}:{service['port']}"
