"""Brings a small Compose project to this host, back to what ran there, or takes it down; compose_project decides what.

For the modules that run such a project. Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import os
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from .compose_project import (
    COMPOSE,
    OVERRIDE,
    STATE,
    Change,
    Project,
    Reload,
    State,
    change_to,
    diff_of,
    kept,
    loaded_now,
    problem_of,
    put_back,
    read_state,
    with_files,
    write,
    write_state,
)
from .stack_docker import DockerProblem, StackDocker, load_python_on_whales
from .stack_releases import Locked, Releases
from .stack_steps import Container, containers_of, name_conflicts

# A container without a health check counts as up when it ran this long without a restart.
SETTLED_SECONDS = 3
LOG_LINES = 15
ASK_SECONDS = 0.5


class Refused(Exception):
    """It cannot be; the message says why, and nothing was changed."""


class Undone(Exception):
    """What failed; `left` says how things are now, and is empty where they are as before."""

    def __init__(self, reason: str, left: str) -> None:
        super().__init__(reason)
        self.left = left


class Runner:
    """`check_url`: what answers once all of it works; empty where nothing is asked."""

    def __init__(
        self, project: Project, docker: StackDocker, directory: str, wait_timeout: int, check_url: str = ""
    ) -> None:
        self.project, self.docker, self.directory = project, docker, directory
        self.wait_timeout, self.check_url = wait_timeout, check_url
        self.compose_files = [os.path.join(directory, name) for name in (COMPOSE, OVERRIDE)]
        self.definition = with_files(project)
        self.told: list[Reload] = []

    def run(self, check_mode: bool, venv: str, lock_timeout: int) -> dict[str, Any]:
        """Bring it here, or in check mode say what that would be. Raises Refused, Undone, Locked or DockerProblem."""
        problem = problem_of(self.project)
        if problem:
            raise Refused(problem)
        change = self.change(wait=not check_mode)
        result = result_of(change) | {"diff": diff_of(self.directory, change)}
        if check_mode or not (change or change.steps):
            return result
        need_docker(self.docker, venv)
        with Releases(self.directory).locked(lock_timeout):
            self.apply(self.change())
        return result

    def change(self, wait: bool = True) -> Change:
        there = self.docker.answers_again() if wait else self.docker.answers()
        inspected = self.docker.containers() if there else []
        conflicts = name_conflicts(self.definition, self.project.name, inspected)
        if conflicts:
            raise Refused(f"{'; '.join(conflicts)}. Remove that container")
        images = self.docker.images(service["image"] for service in self.definition["services"].values())
        return change_to(self.project, self.directory, read_state(self.directory), inspected, images)

    def apply(self, change: Change) -> None:
        """Where it does not work everything is as it was, and DockerProblem, Refused or Undone says why."""
        self.pull_missing()
        state = read_state(self.directory)
        before = kept(self.directory, [*(file.path for file in change.files), *change.gone])
        moves = False
        try:
            for file in change.files:
                write(self.directory, file)
            put_back(self.directory, [(path, None) for path in change.gone])
            self.check(change)
            moves = any(step.changes for step in change.steps)
            if change.steps:
                self.bring(change)
            self.tell(change.reloads)
            self.await_answer()
        except Refused:
            put_back(self.directory, before)
            raise
        except (DockerProblem, OSError) as problem:
            put_back(self.directory, before)
            raise Undone(str(problem), self.come_back(state, moves)) from problem
        paths = [file.path for file in self.project.files]
        write_state(self.directory, State(paths, loaded_now(self.project), self.definition))

    def pull_missing(self) -> None:
        references = [service["image"] for service in self.definition["services"].values()]
        for reference, identity in self.docker.images(references).items():
            if identity is None:
                pull(self.docker, reference)

    def check(self, change: Change) -> None:
        """Before anything moves, so that a refused file was read by nobody."""
        identities = {container.service: container.id for container in self.containers()}
        for reload in change.reloads + change.trials:
            if not reload.check:
                continue
            try:
                if reload in change.trials:
                    self.docker.execute_apart(self.compose_files, reload.service, reload.check)
                else:
                    self.docker.execute(identities[reload.service], reload.check)
            except DockerProblem as problem:
                raise Refused(f"{reload.service}: its new configuration is refused", str(problem)) from problem

    def bring(self, change: Change) -> None:
        leave = {step.service for step in change.steps if step.clears or step.action == "restart"}
        self.docker.remove([box.id for box in self.containers() if box.service in leave])
        try:
            self.docker.up(self.compose_files, self.wait_timeout)
        except DockerProblem as problem:
            raise DockerProblem(f"{problem}\n{self.failing()}".strip()) from problem
        moved = {step.service for step in change.steps}
        if any(not box.health and box.service in moved for box in self.containers()):
            time.sleep(SETTLED_SECONDS)
        failing = self.failing()
        if failing:
            raise DockerProblem(failing)

    def containers(self) -> list[Container]:
        return containers_of(self.project.name, self.docker.containers())

    def failing(self) -> str:
        """Services that are not up, each with the end of its log; empty where all are."""
        found = []
        for container in self.containers():
            inspected = self.docker.container(container.id) or {}
            restarts = inspected.get("RestartCount") or 0
            well = container.status == "running" and container.health in ("", "healthy")
            if container.service in self.definition["services"] and not (well and (container.health or not restarts)):
                lines = "".join(f"\n  {line}" for _, line in self.docker.log(container.id, tail=LOG_LINES))
                state = f"{container.status} {container.health}".strip()
                found.append(f"{container.service} is {state}, {restarts} restarts; its last lines:{lines}")
        return "\n".join(found)

    def tell(self, reloads: Sequence[Reload]) -> None:
        """Have services read their files again."""
        identities = {container.service: container.id for container in self.containers()} if reloads else {}
        for reload in reloads:
            self.told.append(reload)
            if reload.command:
                self.docker.execute(identities[reload.service], reload.command)
            if reload.signal:
                self.docker.signal(identities[reload.service], reload.signal)

    def await_answer(self) -> None:
        end = time.monotonic() + self.wait_timeout
        problem = answer_of(self.check_url)
        while problem and time.monotonic() < end:
            time.sleep(ASK_SECONDS)
            problem = answer_of(self.check_url)
        if problem:
            raise DockerProblem(f"{self.check_url} does not answer: {problem}\n{self.failing()}".strip())

    def come_back(self, state: State, moves: bool) -> str:
        """Run what ran before, with the files that are back; empty where that worked, else how things are now."""
        told, self.told = self.told, []
        try:
            if moves and state.definition is None:
                self.docker.remove([box.id for box in self.containers()])
                return "Nothing ran before, and nothing is left running."
            if moves:
                self.docker.up(self.compose_files, self.wait_timeout)
            self.tell(told)
        except DockerProblem as problem:
            return f"What ran before did not come back: {problem}"
        return ""


def answer_of(url: str) -> str:
    """Why it does not answer; empty where it does. A certificate is not verified."""
    if not url:
        return ""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=5, context=context):
            return ""
    except OSError as problem:
        return str(problem) or type(problem).__name__


def result_of(change: Change) -> dict[str, Any]:
    return {
        "changed": bool(change),
        "steps": [step._asdict() for step in change.steps],
        "files": [file.path for file in change.files] + list(change.gone),
        "reloaded": [reload.service for reload in change.reloads],
    }


def pull(docker: StackDocker, reference: str) -> None:
    try:
        docker.pull(reference)
    except DockerProblem as problem:
        raise Refused("An image cannot be pulled", str(problem)) from problem


def need_docker(docker: StackDocker, venv: str) -> None:
    if not docker.answers():
        raise DockerProblem("No Docker engine answers: run playbooks/provision.yml. Nothing was changed.")
    load_python_on_whales(venv)


def take_down(
    docker: StackDocker, directory: str, volumes: bool, check_mode: bool, venv: str, lock_timeout: int
) -> dict[str, Any]:
    """Remove the project's containers, its network, its files, and with `volumes` its data."""
    containers = containers_of(docker.project, docker.containers())
    present = os.path.exists(os.path.join(directory, STATE)) or bool(containers)
    if check_mode or not present:
        return {"changed": present}
    need_docker(docker, venv)
    with Releases(directory).locked(lock_timeout):
        docker.remove([container.id for container in containers_of(docker.project, docker.containers())])
        docker.down(volumes)
        put_back(directory, [(path, None) for path in [*read_state(directory).files, COMPOSE, OVERRIDE, STATE]])
    shutil.rmtree(directory)
    return {"changed": True}


def answer(module: Any, run: Callable[[], dict[str, Any]]) -> None:
    """What an Ansible module answers of it."""
    try:
        result = run()
    except Refused as refusal:
        reason, *words = refusal.args
        module.fail_json(msg="\n".join([f"{reason}. Nothing was changed.", *words]))
    except Undone as problem:
        left = problem.left or "What ran before runs."
        module.fail_json(msg=f"{problem}\n{left}", changed=bool(problem.left), rolled_back=not problem.left)
    except Locked as holder:
        module.fail_json(msg=f"Another run is still at it: {holder}. Nothing was changed.")
    except DockerProblem as problem:
        module.fail_json(msg=str(problem))
    else:
        module.exit_json(**result)
