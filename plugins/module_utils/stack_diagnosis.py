"""What is wrong with the stack of this host: the logs of its containers, of Docker and of the kernel, explained.

Runs on the host, under its own Python, 3.9 or newer. Changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .diagnosis import Signature, diagnose
from .host_facts.host import Host, Output
from .running_stack import ContainerState, container_states, read_plan

GIB = 1024**3
LAST_LINES = 20
UNITS = ("docker", "nvidia-cdi-refresh")
KERNEL_LINE = re.compile(r"NVRM|Xid|[Oo]ut of memory|oom-kill")
UNKNOWN = "no line of its log is recognised", "Read its last lines."
NO_LOG = "it has no log", "Run playbooks/deploy.yml."
DOCKER_REMEDY = "Read: systemctl status docker; journalctl -u docker"
DISK_REMEDY = "See what takes it: docker system df; then: docker image prune --all"
_TIMESTAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\S+Z) ?")


class StackDiagnosis:
    """The findings of one host, most likely cause first within each place where it was looked."""

    def __init__(
        self,
        host: Host,
        signatures: Sequence[Signature],
        stack_dir: str,
        project: str,
        docker_socket: str,
        tail: int = 400,
        since: str = "-2h",
        disk: Mapping[str, float] | None = None,
    ):
        self.host = host
        self.signatures = signatures
        self.docker_socket = docker_socket
        self.tail = tail
        self.since = since
        self.disk = dict(disk or {})
        plan = read_plan(host, stack_dir)
        (containers,) = host.docker_api(docker_socket, ["/containers/json?all=1"])
        self.docker_answers = containers is not None
        self.engines = {service["container_name"]: service["engine"] for service in plan["services"]} if plan else {}
        for name in _of_project(containers or [], project):
            self.engines.setdefault(name, None)
        self.states = container_states(host, docker_socket, list(self.engines)) if self.docker_answers else []

    def findings(self) -> list[dict[str, Any]]:
        """{place, state, id, cause, remedy, line, count}, services first; `last_lines` where nothing explains it."""
        outputs = self.host.run_all({**self._container_commands(), **self._host_commands()})
        found = []
        for state in self.states:
            log, inside = (outputs.get(f"{what} {state.name}", Output(0)) for what in ("log", "smi"))
            found += self._of_container(state, log, inside)
        driver = outputs["nvidia-smi"]
        found += self._explain("driver", [] if driver.status == 0 else _lines(driver), "driver")
        if not self.docker_answers:
            found.append(_finding("docker", "docker_not_running", "no Docker engine answers", DOCKER_REMEDY))
        found += self._explain("docker", _lines(outputs["journal"]), "docker")
        found += self._explain("kernel", filter(KERNEL_LINE.search, _lines(outputs["kernel"])), "kernel")
        return found + self._full_disks()

    def _container_commands(self) -> dict[str, list[str]]:
        """A container that is well is asked for its present run only: an older one's errors are over."""
        commands = {}
        for state in self.states:
            since = ["--since", state.started] if state.well else []
            if state.status != "missing":
                log = ["docker", "logs", "--timestamps", "--tail", str(self.tail), *since, state.name]
                commands[f"log {state.name}"] = log
            if state.status == "running":
                commands[f"smi {state.name}"] = ["docker", "exec", state.name, "nvidia-smi", "--list-gpus"]
        return commands

    def _host_commands(self) -> dict[str, list[str]]:
        journal = ["journalctl", "--no-pager", "--quiet", "--output", "short-iso"]
        units = [f"--unit={unit}" for unit in UNITS]
        return {
            "nvidia-smi": ["nvidia-smi"],
            "journal": [*journal, *units, "--since", self.since, "--lines", "2000"],
            "kernel": [*journal, "--dmesg", "--lines", "20000"],
        }

    def _of_container(self, state: ContainerState, log: Output, inside: Output) -> list[dict[str, Any]]:
        lines = in_order(_lines(log))
        found = self._explain(state.name, [] if inside.status == 0 else _lines(inside), "driver")
        found += self._explain(state.name, [state.error], "docker")
        found += self._explain(state.name, lines, "engine", self.engines[state.name])
        generic = {signature.id for signature in self.signatures if signature.generic}
        if state.well:
            # What a service that serves has logged is no cause, unless it cannot go on.
            fatal = {signature.id for signature in self.signatures if signature.fatal} - generic
            found = [finding for finding in found if finding["id"] in fatal]
        elif all(finding["id"] in generic for finding in found):
            last = [line.rstrip() for line in lines[-LAST_LINES:]] + ([state.error] if state.error else [])
            cause, remedy = UNKNOWN if last else NO_LOG
            found.append({**_finding(state.name, "unknown", cause, remedy), "last_lines": last})
        return [{**finding, "state": str(state)} for finding in found]

    def _explain(
        self, place: str, lines: Iterable[str], source: str, engine: str | None = None
    ) -> list[dict[str, Any]]:
        return [{"place": place, **finding} for finding in diagnose(lines, self.signatures, engine, source)]

    def _full_disks(self) -> list[dict[str, Any]]:
        found = []
        for path, least in sorted(self.disk.items()):
            system = self.host.file_system(path)
            if system and system.available < least * GIB:
                available = f"{system.available / GIB:.1f} GiB available on {system.mount}"
                cause = f"{path} has less than {least:g} GiB left"
                found.append(_finding("disk", "disk_nearly_full", cause, DISK_REMEDY, available))
        return found


def in_order(lines: Iterable[str]) -> list[str]:
    """Lines of `docker logs --timestamps` by their time, without it: both streams as the program wrote them."""
    matches = [(_TIMESTAMP.match(line), line) for line in lines]
    timed = [(match[1], line[match.end() :]) if match else ("", line) for match, line in matches]
    return [line for _, line in sorted(timed, key=lambda pair: pair[0])]


def report(findings: Sequence[Mapping[str, Any]], states: Sequence[ContainerState]) -> str:
    """The findings for people: per container or place its state, then cause, remedy and line of each."""
    if not states and not findings:
        return "There is no stack on this host, and its logs hold nothing that is recognised."
    blocks = []
    places = [state.name for state in states]
    places += [place for place in dict.fromkeys(finding["place"] for finding in findings) if place not in places]
    sentences = {state.name: f"{state.name} {state}" for state in states}
    for place in places:
        rows = [sentences.get(place, place)]
        for finding in findings:
            if finding["place"] != place:
                continue
            rows += [f"  cause   {finding['cause']}", f"  remedy  {finding['remedy']}"]
            if finding["line"]:
                times = f"  ({finding['count']} times)" if finding["count"] > 1 else ""
                rows.append(f"  line    {finding['line'][:300]}{times}")
            rows += [f"          {line[:300]}" for line in finding.get("last_lines", ())]
        blocks.append("\n".join(rows))
    if not findings:
        blocks.append("Nothing that is recognised stands in the logs of these containers, of Docker or of the kernel.")
    return "\n".join(blocks)


def _of_project(containers: Iterable[Mapping[str, Any]], project: str) -> list[str]:
    return [
        (container.get("Names") or [""])[0].lstrip("/")
        for container in containers
        if (container.get("Labels") or {}).get("com.docker.compose.project") == project
    ]


def _finding(place: str, name: str, cause: str, remedy: str, line: str = "") -> dict[str, Any]:
    return {"place": place, "id": name, "cause": cause, "remedy": remedy, "line": line, "count": 1 if line else 0}


def _lines(output: Output) -> list[str]:
    return [line for line in f"{output.stdout}\n{output.stderr}".splitlines() if line.strip()]
