"""Start the services of a stack, one after another, and know within seconds when one of them will not come up.

Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import datetime
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .diagnosis import Signature, diagnose, first_fatal
from .node_groups import answers_requests
from .stack_docker import DockerProblem, StackDocker, published
from .stack_releases import Release
from .stack_steps import Step

POLL_SECONDS = 0.5
# After a fatal line the engine goes on to say why.
WORDS_AFTER_FATAL_SECONDS = 1.0
PROBE_SECONDS = 120
LOG_LINES = 40
READ_LINES = 2000


class ServiceFailed(Exception):
    """A service did not come up. `report`: {service, problem, findings, log, gpu, seconds_from_fatal_line}."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        super().__init__(report["problem"])


class Starter:
    """Brings a release to life. `note` is told each step as it happens."""

    def __init__(self, docker: StackDocker, signatures: Sequence[Signature], note: Callable[[str], None]) -> None:
        self.docker, self.signatures, self.note = docker, signatures, note

    def apply(self, release: Release, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """Do the steps: first everything that goes, then one service at a time in start order.

        Returns {service, action, reason, seconds} of each. Raises ServiceFailed for the first that does not come up.
        """
        self._clear(steps)
        services = {service["name"]: service for service in release.plan["services"]}
        done = []
        for step in steps:
            begin = time.monotonic()
            if step.action != "remove":
                self._bring_up(release, services[step.service], step)
            seconds = round(time.monotonic() - begin, 1)
            done.append({**step._asdict(), "seconds": seconds})
        return done

    def _clear(self, steps: Sequence[Step]) -> None:
        """A container that is to restart is stopped as well: its memory is part of what others measure."""
        gone = {step.service for step in steps if step.clears}
        paused = {step.service for step in steps if step.action == "restart"}
        containers = self.docker.containers()

        def ids(names: set[str]) -> list[str]:
            labels = [(container["Id"], container["Config"].get("Labels") or {}) for container in containers]
            return [
                identity
                for identity, label in labels
                if label.get("com.docker.compose.project") == self.docker.project
                and label.get("com.docker.compose.service", "") in names
            ]

        if gone or paused:
            self.note(f"stop {', '.join(sorted(gone | paused))}")
        self.docker.stop(ids(paused))
        self.docker.remove(ids(gone))

    def _bring_up(self, release: Release, service: Mapping[str, Any], step: Step) -> None:
        name = service["name"]
        self.note(f"{name}: {step.action} ({step.reason})")
        before = self._look(lambda: self.docker.container_of(name))
        since = _now()
        try:
            if step.action != "wait":
                self.docker.start(release.compose_files, name)
        except DockerProblem as problem:
            container = self.docker.container_of(name)
            self._fail(service, container["Id"] if container else "", "Docker cannot start it", str(problem), since)
        container = self._look(lambda: self.docker.container_of(name))
        if container is None:
            self._fail(service, "", "its container is gone", "", since)
        restarts = 0
        if step.action == "wait" and before is not None:
            since, restarts = before["State"].get("StartedAt", ""), before["RestartCount"]
        self._watch(service, container["Id"], since, restarts)
        if answers_requests(service):
            self._probe(service, container["Id"], since)
            self.note(f"{name}: healthy, and it answers")
        else:
            self.note(f"{name}: healthy; {service['nodes']['hosts'][0]} answers for it")

    def _look(self, look: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """What the engine says of a container. An engine that starts anew is waited for: None then means nothing."""
        found = look()
        if found is None:
            if not self.docker.answers_again():
                raise DockerProblem(
                    "Docker does not answer any more: systemctl status docker; journalctl --unit docker"
                )
            found = look()
        return found

    def _watch(self, service: Mapping[str, Any], identity: str, since: str, restarts: int) -> None:
        """Wait until it is healthy. Ends at once where it exits, or says something after which it cannot go on."""
        health = service["healthcheck"]
        limit = health["start_period_s"] + health["retries"] * (health["interval_s"] + health["timeout_s"])
        end, read = time.monotonic() + limit, since
        while True:
            fatal = None
            for moment, line in self.docker.log(identity, since=read):
                read = moment
                if fatal is None and first_fatal(line, self.signatures, service["engine"]):
                    fatal = moment
            container = self._look(lambda: self.docker.container(identity))
            if container is None:
                self._fail(service, identity, "its container was removed while it started", "", since)
            state = container["State"]
            if fatal:
                time.sleep(WORDS_AFTER_FATAL_SECONDS)
                self._fail(service, identity, "it cannot start", "", since, fatal)
            if state["Status"] != "running" or container["RestartCount"] != restarts:
                statuses = self.docker.exit_statuses(identity, since) or [state["ExitCode"]]
                problem = f"it ended with status {statuses[0]} while it started"
                if state.get("OOMKilled"):
                    problem = "the host's memory ran out while it started"
                self._fail(service, identity, problem, state.get("Error") or "", since)
            if (state.get("Health") or {}).get("Status", "healthy") == "healthy":
                return
            if time.monotonic() > end:
                said = [entry.get("Output", "").strip() for entry in (state["Health"].get("Log") or [])[-1:]]
                self._fail(
                    service,
                    identity,
                    f"it is not healthy after {limit:.0f} s"
                    + (f"; its last check said: {said[0][-200:]}" if any(said) else ""),
                    "",
                    since,
                )
            time.sleep(POLL_SECONDS)

    def _probe(self, service: Mapping[str, Any], identity: str, since: str) -> None:
        """Ask for one token: a healthy engine may still fail at its first request."""
        body = {"model": service["served_name"], "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        request = urllib.request.Request(
            f"{published(service)}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        problem = ""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=PROBE_SECONDS
            ) as answer:
                content = json.loads(answer.read())
            usage = content.get("usage") if isinstance(content, dict) else None
            if not (usage or {}).get("completion_tokens"):
                problem = "its answer to one request has no token"
        except urllib.error.HTTPError as error:
            problem = (
                f"it answers one request with status {error.code}: {error.read(300).decode(errors='replace').strip()}"
            )
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = f"it does not answer one request: {getattr(error, 'reason', '') or error!r}"
        if problem:
            self._fail(service, identity, f"it is healthy, but {problem}", "", since)

    def _fail(
        self, service: Mapping[str, Any], identity: str, problem: str, docker_words: str, since: str, fatal: str = ""
    ) -> None:
        """Gather what explains the failure, stop the container, and raise."""
        timed = self.docker.log(identity, since=since, tail=READ_LINES) if identity else []
        lines = [line for _, line in timed]
        if not fatal:  # a container that ended may have said why after the last look
            ends = (moment for moment, line in timed if first_fatal(line, self.signatures, service["engine"]))
            fatal = next(ends, "")
        findings = diagnose(docker_words.splitlines(), self.signatures, None, "docker")
        findings += diagnose(lines, self.signatures, service["engine"])
        report = {
            "service": service["name"],
            "problem": ": ".join(filter(None, [problem, docker_words.strip()])),
            "findings": findings,
            "log": lines[-LOG_LINES:],
            "gpu": self.docker.gpu_table(),
            "seconds_from_fatal_line": round(_seconds(_now()) - _seconds(fatal), 1) if fatal else None,
        }
        self.note(f"{service['name']}: {report['problem']}")
        if identity:
            self.docker.stop([identity])
        raise ServiceFailed(report)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seconds(moment: str) -> float:
    """RFC 3339 with any number of decimals, as seconds since 1970."""
    whole, _, decimals = moment.rstrip("Z").partition(".")
    parsed = datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    return parsed.timestamp() + float(f"0.{decimals or 0}")


def failure_text(report: Mapping[str, Any]) -> str:
    """The report for people: what happened, why, what helps, the last lines, the GPU's memory."""
    rows = [f"{report['service']}: {report['problem']}."]
    for finding in report["findings"][:3]:
        rows += [
            f"  cause   {finding['cause']}",
            f"  remedy  {finding['remedy']}",
            f"  line    {finding['line'][:300]}",
        ]
    if not report["findings"]:
        rows.append("  No line of its log is recognised.")
    if report["log"]:
        rows += ["Its last lines:", *(f"  {line[:300]}" for line in report["log"][-15:])]
    if report["gpu"]:
        rows += ["GPU memory at that moment:", *(f"  {line}" for line in report["gpu"])]
    return "\n".join(rows)
