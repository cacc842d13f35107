#!/usr/bin/python
"""Run a small Compose project with its configuration files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compose_project
short_description: Run a small Compose project with its configuration files, in one call
version_added: 0.3.0
description:
  - Writes a Compose file and the files that its services mount, and brings the containers to them. What is as wanted
    stays untouched; what is not wanted any more is removed.
  - A service whose mounted files changed is made anew, or told to read them again where O(reload) says how. Mount
    directories and not single files, because a file is replaced and a mount of it would keep the old one.
  - All services have to run and to be healthy in the end. If not, or if a check of O(reload) fails, the files that were
    there come back, with the containers that ran with them, and the module fails with the last lines of the log.
  - An interrupted run is finished by the next one.
  - Changes need python-on-whales, see O(venv). Check mode needs neither that nor Docker.
options:
  state:
    description: V(absent) removes the containers, the network, the files, and with O(volumes) the data.
    type: str
    choices: [present, absent]
    default: present
  project:
    description: Name of the Compose project.
    type: str
    required: true
  directory:
    description: Directory on the host for the files.
    type: path
    required: true
  compose:
    description: The text of C(compose.yaml). Required for V(present).
    type: str
  definition:
    description: The same Compose file as a dictionary. Required for V(present).
    type: dict
  files:
    description: The files that the services mount.
    type: list
    elements: dict
    default: []
    suboptions: &file
      path:
        description: Path below O(directory).
        type: str
        required: true
      content:
        description: What it holds.
        type: str
        required: true
      mode:
        description: Its permissions.
        type: str
        default: "0644"
      owner:
        description: Its owner's number; by default who runs the module.
        type: int
      group:
        description: Its group's number.
        type: int
  secrets:
    description:
      - Files whose content appears in no output and no diff. The host's log would have it, as it has all parameters; a
        task with secrets sets the variable C(ansible_no_target_syslog).
    type: list
    elements: dict
    default: []
    suboptions:
      <<: *file
      mode:
        description: Its permissions.
        type: str
        default: "0400"
  reload:
    description: How a service that runs reads changed files again.
    type: list
    elements: dict
    default: []
    suboptions:
      service:
        description: Name of the service.
        type: str
        required: true
      files:
        description: Patterns of paths of O(files) and O(secrets).
        type: list
        elements: str
        required: true
      check:
        description: Command in the service's container that judges the new files; a status other than 0 refuses them.
        type: list
        elements: str
        default: []
      command:
        description: Command in the service's container that makes it read them.
        type: list
        elements: str
        default: []
      signal:
        description: Signal to its main process that makes it read them.
        type: str
        default: ""
  wait_timeout:
    description: Seconds in which all services have to be healthy.
    type: int
    default: 120
  lock_timeout:
    description: Seconds to wait for another run on the same directory to end.
    type: int
    default: 300
  volumes:
    description: With V(absent), whether to remove the project's volumes too.
    type: bool
    default: false
  venv:
    description: Virtual environment on the host with python-on-whales.
    type: path
    default: /opt/blackwell-serving/venv
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
attributes:
  check_mode:
    support: full
    description: Says what would be done. Where there is no Docker yet, that is to create every service.
  diff_mode:
    support: full
    description: The files that change, of O(secrets) only that they do, and the steps.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Run a web server that reads its configuration again when it changes
  blackwell.serving.compose_project:
    project: front
    directory: /opt/front
    compose: "{{ front_compose }}"
    definition: "{{ front_compose | from_yaml }}"
    files:
      - {path: nginx/nginx.conf, content: "{{ front_configuration }}"}
    secrets:
      - {path: secrets/key.pem, content: "{{ front_key }}", owner: 101}
    reload:
      - {service: nginx, files: [nginx/*], check: [nginx, -t], signal: HUP}
  vars:
    ansible_no_target_syslog: true
    front_compose: "{{ lookup('ansible.builtin.template', 'compose.yaml.j2') }}"
"""

RETURN = r"""
steps:
  description: What was done with containers, or would be done in check mode.
  returned: with O(state=present)
  type: list
  elements: dict
  sample:
    - {service: nginx, action: recreate, reason: "changed: image"}
files:
  description: Paths of the files that were, or would be, written or removed.
  returned: with O(state=present)
  type: list
  elements: str
reloaded:
  description: Services that read their files again, or would.
  returned: with O(state=present)
  type: list
  elements: str
rolled_back:
  description: Whether what ran before runs again.
  returned: when something did not come up
  type: bool
"""

import os
import shutil
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.compose_project import (
    COMPOSE,
    OVERRIDE,
    STATE,
    Change,
    File,
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
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import (
    DockerProblem,
    StackDocker,
    load_python_on_whales,
)
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Locked, Releases
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import containers_of

# A container without a health check counts as up when it ran this long without a restart.
SETTLED_SECONDS = 3
LOG_LINES = 15


class Runner:
    """Brings the project to this host."""

    def __init__(self, module: AnsibleModule, project: Project, docker: StackDocker) -> None:
        self.module, self.project, self.docker = module, project, docker
        self.directory = module.params["directory"]
        self.compose_files = [os.path.join(self.directory, name) for name in (COMPOSE, OVERRIDE)]

    def change(self) -> Change:
        there = self.docker.answers() if self.module.check_mode else self.docker.answers_again()
        inspected = self.docker.containers() if there else []
        images = self.docker.images(service["image"] for service in self.project.definition["services"].values())
        return change_to(self.project, self.directory, read_state(self.directory), inspected, images)

    def apply(self, change: Change) -> None:
        """Raises DockerProblem or OSError where it does not work; then everything is as it was."""
        self.pull_missing()
        state = read_state(self.directory)
        before = kept(self.directory, [*(file.path for file in change.files), *change.gone])
        moves = any(step.changes for step in change.steps)
        try:
            for file in change.files:
                write(self.directory, file)
            put_back(self.directory, [(path, None) for path in change.gone])
            if change.steps:
                self.bring(change)
            self.reload(change)
        except (DockerProblem, OSError) as problem:
            put_back(self.directory, before)
            raise Undone(str(problem), self.come_back(state) if moves else "") from problem
        paths = [file.path for file in self.project.files]
        write_state(self.directory, State(paths, loaded_now(self.project), with_files(self.project)))

    def pull_missing(self) -> None:
        references = [service["image"] for service in self.project.definition["services"].values()]
        for reference, identity in self.docker.images(references).items():
            if identity is None:
                self.docker.pull(reference)

    def bring(self, change: Change) -> None:
        leave = {step.service for step in change.steps if step.clears or step.action == "restart"}
        self.docker.remove([box.id for box in self.containers() if box.service in leave])
        try:
            self.docker.up(self.compose_files, self.module.params["wait_timeout"])
        except DockerProblem as problem:
            raise DockerProblem(f"{problem}\n{self.failing()}".strip()) from problem
        settle = [box for box in self.containers() if not box.health and box.service in self.moved(change)]
        if settle:
            time.sleep(SETTLED_SECONDS)
        failing = self.failing()
        if failing:
            raise DockerProblem(failing)

    def moved(self, change: Change) -> set:
        return {step.service for step in change.steps}

    def containers(self) -> list:
        return containers_of(self.project.name, self.docker.containers())

    def failing(self) -> str:
        """Services that are not up, each with the end of its log; empty where all are."""
        found = []
        services = self.project.definition["services"]
        for container in self.containers():
            inspected = self.docker.container(container.id) or {}
            restarts = inspected.get("RestartCount") or 0
            well = container.status == "running" and container.health in ("", "healthy")
            if container.service in services and not (well and (container.health or not restarts)):
                lines = "".join(f"\n  {line}" for _, line in self.docker.log(container.id, tail=LOG_LINES))
                state = f"{container.status} {container.health}".strip()
                found.append(f"{container.service} is {state}, {restarts} restarts; its last lines:{lines}")
        return "\n".join(found)

    def reload(self, change: Change) -> None:
        """All checks first, so that a refused file was read by nobody."""
        identities = {container.service: container.id for container in self.containers()}
        for reload in change.reloads:
            if reload.check:
                self.docker.execute(identities[reload.service], reload.check)
        for reload in change.reloads:
            if reload.command:
                self.docker.execute(identities[reload.service], reload.command)
            if reload.signal:
                self.docker.signal(identities[reload.service], reload.signal)

    def come_back(self, state: State) -> str:
        """Run what ran before; empty where that worked, else how things are now."""
        try:
            if state.definition is None:
                self.docker.remove([box.id for box in self.containers()])
                return "Nothing ran before, and nothing is left running."
            self.docker.up(self.compose_files, self.module.params["wait_timeout"])
        except DockerProblem as problem:
            return f"What ran before did not come back: {problem}"
        return ""


class Undone(Exception):
    """What failed; `left` says how things are now, and is empty where they are as before."""

    def __init__(self, reason: str, left: str) -> None:
        super().__init__(reason)
        self.left = left


def project_of(parameters: dict) -> Project:
    files = [
        File(entry["path"], entry["content"], entry["mode"], entry["owner"], entry["group"], kind == "secrets")
        for kind in ("files", "secrets")
        for entry in parameters[kind]
    ]
    reloads = [
        Reload(entry["service"], entry["files"], entry["check"], entry["command"], entry["signal"])
        for entry in parameters["reload"]
    ]
    return Project(parameters["project"], parameters["definition"], parameters["compose"], files, reloads)


def result_of(change: Change) -> dict:
    return {
        "changed": bool(change),
        "steps": [step._asdict() for step in change.steps],
        "files": [file.path for file in change.files] + list(change.gone),
        "reloaded": [reload.service for reload in change.reloads],
    }


def need_docker(module: AnsibleModule, docker: StackDocker) -> None:
    if not docker.answers():
        module.fail_json(msg="No Docker engine answers: run playbooks/provision.yml. Nothing was changed.")
    load_python_on_whales(module.params["venv"])


def run_present(module: AnsibleModule, docker: StackDocker, lock: Releases) -> dict:
    project = project_of(module.params)
    problem = problem_of(project)
    if problem:
        module.fail_json(msg=f"{problem}. Nothing was changed.")
    runner = Runner(module, project, docker)
    directory = module.params["directory"]
    change = runner.change()
    result = result_of(change) | {"diff": diff_of(directory, change)}
    if module.check_mode or not (change or change.steps):
        return result
    need_docker(module, docker)
    with lock.locked(module.params["lock_timeout"]):
        try:
            runner.apply(runner.change())
        except Undone as problem:
            left = problem.left or "What ran before runs."
            module.fail_json(msg=f"{problem}\n{left}", changed=bool(problem.left), rolled_back=not problem.left)
    return result


def run_absent(module: AnsibleModule, docker: StackDocker, lock: Releases) -> dict:
    directory, name = module.params["directory"], module.params["project"]
    state = read_state(directory)
    present = os.path.exists(os.path.join(directory, STATE)) or bool(containers_of(name, docker.containers()))
    if module.check_mode or not present:
        return {"changed": present}
    need_docker(module, docker)
    with lock.locked(module.params["lock_timeout"]):
        docker.remove([container.id for container in containers_of(name, docker.containers())])
        docker.down(module.params["volumes"])
        put_back(directory, [(path, None) for path in [*state.files, COMPOSE, OVERRIDE, STATE]])
    shutil.rmtree(directory)
    return {"changed": True}


def main() -> None:
    def file_options(mode: str, secret: bool) -> dict:
        return {
            "path": {"type": "str", "required": True},
            "content": {"type": "str", "required": True, "no_log": secret},
            "mode": {"type": "str", "default": mode},
            "owner": {"type": "int"},
            "group": {"type": "int"},
        }

    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "project": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "compose": {"type": "str"},
            "definition": {"type": "dict"},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file_options("0644", False)},
            "secrets": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "no_log": False,
                "options": file_options("0400", True),
            },
            "reload": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "service": {"type": "str", "required": True},
                    "files": {"type": "list", "elements": "str", "required": True},
                    "check": {"type": "list", "elements": "str", "default": []},
                    "command": {"type": "list", "elements": "str", "default": []},
                    "signal": {"type": "str", "default": ""},
                },
            },
            "wait_timeout": {"type": "int", "default": 120},
            "lock_timeout": {"type": "int", "default": 300},
            "volumes": {"type": "bool", "default": False},
            "venv": {"type": "path", "default": "/opt/blackwell-serving/venv"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        required_if=[("state", "present", ["compose", "definition"])],
        supports_check_mode=True,
    )
    docker = StackDocker(Host(), module.params["project"], module.params["docker_socket"])
    run = {"present": run_present, "absent": run_absent}[module.params["state"]]
    try:
        result = run(module, docker, Releases(module.params["directory"]))
    except Locked as holder:
        module.fail_json(msg=f"Another run is still at it: {holder}. Nothing was changed.")
    except DockerProblem as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
