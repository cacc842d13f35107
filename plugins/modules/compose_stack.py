#!/usr/bin/python
"""Run a planned stack of engine services on a GPU host, and go back to the one before where that fails."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compose_stack
short_description: Run a planned stack of services with Docker Compose, one start at a time, with a way back
version_added: 0.2.0
description:
  - Compares what runs with what was planned, by a label on each container that holds the digest of what it was made
    from. What is as planned stays untouched.
  - First everything stops that has to go, then one service after another starts, in the plan's order, because an engine
    sizes itself by the GPU memory that is free when it starts. Each has to be healthy and to answer a request for one
    token before the next one starts.
  - A service that exits, or says in its log something after which it cannot go on, ends the wait within seconds. The
    message holds the cause and the remedy from O(signatures), its last lines and the memory of the GPUs. Then the
    release that served before comes back, and the module fails with RV(rolled_back=true).
  - Each deployment is a directory below C(releases), and C(current) leads to the one that serves. Five are kept. The
    directory's C(deploy.log) can be followed while a deployment runs, and C(plan.prom) has
    the plan as series for Prometheus.
  - Two deployments never run at the same time. One that was interrupted is finished by the next one. A Docker engine
    that starts anew meanwhile is waited for.
  - A container name or a port that a container of others has is refused before anything stops.
  - A trial (O(trial_seconds)) runs a plan without making it the release that serves. A deployment, a rollback or a boot
    bring that release back, and so does a timer of systemd where none of them came.
  - Changes need python-on-whales, see O(venv). Check mode needs neither that nor Docker.
options:
  state:
    description:
      - V(present) runs O(plan). V(previous) goes back to the release that served before, or to O(release).
      - V(stopped) stops the containers of the project, all at once, and V(started) starts those of the release that
        serves, one after another as V(present) does. Where there is no release, both have nothing to do.
      - V(absent) removes the containers, the project's network and all releases.
    type: str
    choices: [present, previous, started, stopped, absent]
    default: present
  project:
    description: Name of the Compose project.
    type: str
    required: true
  directory:
    description: Directory on the host for releases, the link C(current), and the lock.
    type: path
    default: /opt/blackwell-serving/stack
  plan:
    description: The plan, as in C(plan.json). Required for V(present).
    type: dict
  compose:
    description: The text of C(compose.yaml). Required for V(present).
    type: str
  definition:
    description: The same Compose file as a dictionary. Required for V(present).
    type: dict
  signatures:
    description: The entries of C(catalog/failures.yml), with which a failure is explained.
    type: list
    elements: dict
    default: []
  release:
    description: Name of the release to go back to, with V(previous).
    type: str
    default: ""
  volumes:
    description: With V(absent), whether to remove the project's volumes too, which hold models and compiled kernels.
    type: bool
    default: false
  lock_timeout:
    description: Seconds to wait for another deployment, or for the stack's start at boot, to end.
    type: int
    default: 900
  trial_seconds:
    description:
      - With V(present), for how long O(plan) runs at most; 0 for good. After that time O(unit) starts anew.
      - There has to be a release that serves.
    type: int
    default: 0
  unit:
    description: The unit that starts the release that serves.
    type: str
    default: blackwell-serving.service
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
    description: The services that change, and the steps. Values of variables that look like secrets are hidden.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Run what was planned
  blackwell.serving.compose_stack:
    project: serving
    plan: "{{ lookup('ansible.builtin.file', 'build/box1/plan.json') | from_json }}"
    compose: "{{ lookup('ansible.builtin.file', 'build/box1/compose.yaml') }}"
    definition: "{{ lookup('ansible.builtin.file', 'build/box1/compose.yaml') | from_yaml }}"
    signatures: "{{ (lookup('ansible.builtin.file', 'catalog/failures.yml') | from_yaml).failures }}"

- name: Go back to what served before
  blackwell.serving.compose_stack:
    project: serving
    state: previous
"""

RETURN = r"""
steps:
  description: What was done, in this order, or would be done in check mode.
  returned: always
  type: list
  elements: dict
  sample:
    - {service: qwen, action: recreate, reason: "changed: --context-length 32768 -> 16384", seconds: 54.2}
differs:
  description: Whether what runs, or the release that serves, was not what was wanted.
  returned: with V(present), V(previous) and V(started)
  type: bool
services:
  description: The services of the release that serves, as its plan has them. Empty where there is no release.
  returned: with V(started) and V(stopped)
  type: list
  elements: dict
release:
  description: Name of the release that serves.
  returned: when there is one
  type: str
  sample: 20261124T210500Z
failure:
  description:
    - Why a service did not come up. C(findings) are the causes, most likely first, each with C(id), C(cause),
      C(remedy) and C(line); C(log) its last lines; C(gpu) what C(nvidia-smi) said of memory at that moment.
    - C(seconds_from_fatal_line) is the time from the line that decided it to the decision.
  returned: when one did not
  type: dict
rolled_back:
  description: Whether the release that served before serves again.
  returned: when a service did not come up
  type: bool
"""

import contextlib
import functools
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import stack_metrics
from ansible_collections.blackwell.serving.plugins.module_utils.diagnosis import signatures
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import (
    DockerProblem,
    StackDocker,
    load_python_on_whales,
)
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import (
    FAILED,
    Locked,
    Release,
    Releases,
    utc_now,
)
from ansible_collections.blackwell.serving.plugins.module_utils.stack_start import (
    ServiceFailed,
    Starter,
    failure_text,
)
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import (
    Step,
    containers_of,
    diff_of,
    labels_file,
    name_conflicts,
    port_conflicts,
    steps_to,
)

TRIAL_UNIT = "blackwell-serving-trial"


class Stack:
    """The stack of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        parameters = module.params
        self.project = parameters["project"]
        self.releases = Releases(parameters["directory"])
        self.docker = StackDocker(Host(), self.project, parameters["docker_socket"])
        self.signatures = signatures(parameters["signatures"])

    # ---- what is to be done ----

    def steps(self, release: Release) -> list[Step]:
        """From what runs to this release."""
        services = sorted(release.plan["services"], key=lambda service: service["start_order"])
        there = self.docker.answers() if self.module.check_mode else self.docker.answers_again()
        inspected = self.docker.containers() if there else []
        current = self.releases.current()
        return steps_to(
            release.definition,
            [service["name"] for service in services],
            {service["name"]: service.get("restarts", []) for service in services},
            containers_of(self.project, inspected),
            self.docker.images(service["image"] for service in release.definition["services"].values()),
            current.definition if current else None,
        )

    def wanted(self) -> Release:
        """The release that the parameters describe; it is not written yet."""
        parameters = self.module.params
        plan, definition = parameters["plan"], parameters["definition"]
        if plan.get("verdict") != "fits":
            self.module.fail_json(msg=f"The plan cannot be deployed: its verdict is {plan.get('verdict')}.")
        planned = sorted(service["name"] for service in plan["services"])
        composed = sorted(definition.get("services") or {})
        if planned != composed:
            self.module.fail_json(
                msg=f"plan and compose do not belong together: the plan has {', '.join(planned)}, the Compose file has "
                f"{', '.join(composed)}. Nothing was changed."
            )
        return Release("", "", definition, plan)

    def files(self, release: Release) -> dict[str, str]:
        return {
            "compose.yaml": self.module.params["compose"],
            "compose.override.yaml": labels_file(release.definition),
            "plan.json": json.dumps(release.plan, indent=2, ensure_ascii=False) + "\n",
            stack_metrics.FILE: stack_metrics.plan_metrics(release.plan),
        }

    def end_trial_by_itself(self) -> None:
        """The release that serves comes back after that time, whatever becomes of whoever wanted the trial."""
        self.end_trial()
        seconds, unit = self.module.params["trial_seconds"], self.module.params["unit"]
        timer = [f"--unit={TRIAL_UNIT}", f"--on-active={seconds}", "--timer-property=AccuracySec=1"]
        done = self.docker.host.run(["systemd-run", "--quiet", "--collect", *timer, "systemctl", "restart", unit])
        if done.status != 0:
            self.module.fail_json(msg=f"A trial needs a timer that ends it: {done.stderr.strip()} Nothing was changed.")

    def end_trial(self) -> None:
        """Take back the timer of a trial."""
        if self.docker.host.exists(f"/run/systemd/transient/{TRIAL_UNIT}.timer"):
            self.docker.host.run(["systemctl", "stop", f"{TRIAL_UNIT}.timer"])

    def is_current(self, release: Release) -> bool:
        """Whether the deployed release has the same plan and the same files."""
        current = self.releases.current()
        if current is None or current.plan != release.plan:
            return False
        wanted = self.files(release)
        return all(current.text(name) == wanted[name] for name in ("compose.yaml", stack_metrics.FILE))

    def refuse_conflicts(self, release: Release) -> None:
        """Before anything is stopped: what Docker would refuse only afterwards."""
        containers = self.docker.containers()
        names = name_conflicts(release.definition, self.project, containers)
        ports = port_conflicts(release.plan["services"], self.project, containers)
        if names or ports:
            advice = ["Remove that container, or set container_name of the service."] if names else []
            advice += ["Stop that container, or declare another port of the service."] if ports else []
            self.module.fail_json(msg=f"{'; '.join(names + ports)}. {' '.join(advice)} Nothing was changed.")

    # ---- doing it ----

    def pull_missing(self, release: Release) -> None:
        references = [service["image"] for service in release.definition["services"].values()]
        for reference, identity in self.docker.images(references).items():
            if identity is None:
                self.docker.pull(reference)

    def bring(self, release: Release, steps: list[Step]) -> list[dict]:
        log = functools.partial(note, os.path.join(release.path, "deploy.log"))
        return Starter(self.docker, self.signatures, log).apply(release, steps)

    def deploy(self, release: Release, new: bool) -> dict:
        """Make the release serve, or bring back the one that does. Ends the module where it did not come up."""
        before = self.releases.current()
        steps = self.steps(release)
        try:
            self.pull_missing(release)
        except DockerProblem as problem:
            self.module.fail_json(msg=f"An image cannot be pulled, nothing was stopped: {problem}", steps=[])
        if new:
            try:
                release = self.releases.add(self.files(release), release.definition)
            except OSError as problem:
                self.module.fail_json(msg=f"The release cannot be written: {problem}. Nothing was stopped.", steps=[])
        try:
            done = self.bring(release, steps)
            left = [step for step in self.steps(release) if step.action != "wait"]
            if left:
                raise DockerProblem(f"{left[0].service} is not as planned after its start: {left[0].reason}")
            if self.module.params["trial_seconds"]:
                return {"changed": True, "steps": done, "release": before.name}
            self.releases.make_current(release)
        except (ServiceFailed, DockerProblem, OSError) as problem:
            if new:
                with contextlib.suppress(OSError):  # on a full disk: as one that was interrupted, it does not count
                    self.releases.mark(release.path, FAILED, release.definition)
            self.come_back(before if before and before.name != release.name else None, problem)
        self.releases.prune()
        changed = before is None or before.name != release.name or any(step["action"] != "wait" for step in done)
        return {"changed": changed, "steps": done, "release": release.name}

    def come_back(self, before: Release | None, problem: Exception) -> None:
        """Serve what served before, and fail."""
        report = getattr(problem, "report", None)
        message = failure_text(report) if report else str(problem)
        result = {"changed": True, "failure": report or {}, "rolled_back": False}
        if before is None:
            earlier = self.releases.previous()
            way = (
                f"playbooks/rollback.yml goes back to {earlier.name}"
                if earlier
                else "There is no release to go back to"
            )
            message += f"\n\n{way}. The services that are up stay up."
        else:
            try:
                self.bring(before, self.steps(before))
                self.end_trial()
                result.update(rolled_back=True, release=before.name)
                message += f"\n\nThe release that served before, {before.name}, serves again."
            except (ServiceFailed, DockerProblem, OSError) as second:
                reason = failure_text(second.report) if isinstance(second, ServiceFailed) else str(second)
                message += f"\n\nThe release that served before, {before.name}, did not come back either:\n{reason}"
        self.module.fail_json(msg=message, **result)

    def running(self) -> list[str]:
        """Containers of the project that run, or would again by themselves."""
        found = containers_of(self.project, self.docker.containers())
        return [container.id for container in found if container.status not in ("created", "exited", "dead")]

    def remove(self) -> dict:
        identities = [container.id for container in containers_of(self.project, self.docker.containers())]
        if identities or self.releases.current() or self.module.params["volumes"]:
            self.docker.remove(identities)
            self.docker.down(self.module.params["volumes"])
            self.releases.forget_all()
        return {"steps": []}


def note(path: str, text: str) -> None:
    """For whoever follows it; a full disk is no reason to stop halfway."""
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as log:
        log.write(f"{utc_now()} {text}\n")


def need_python_on_whales(module: AnsibleModule) -> None:
    try:
        load_python_on_whales(module.params["venv"])
    except DockerProblem as problem:
        module.fail_json(msg=str(problem))


def need_docker(module: AnsibleModule, stack: Stack) -> None:
    if not stack.docker.answers() and not module.check_mode:
        module.fail_json(msg="No Docker engine answers: run playbooks/provision.yml. Nothing was changed.")


def run_present(module: AnsibleModule, stack: Stack) -> dict:
    release = stack.wanted()
    need_docker(module, stack)
    stack.refuse_conflicts(release)
    current = stack.releases.current()
    steps = stack.steps(release)
    changed = any(step.changes for step in steps) or not stack.is_current(release)
    diff = diff_of(current.definition if current else None, release.definition, steps)
    result = {"changed": changed, "differs": changed, "diff": diff, "steps": [step._asdict() for step in steps]}
    if current:
        result["release"] = current.name
    if module.check_mode or not (changed or steps):
        return result
    need_python_on_whales(module)
    trial = module.params["trial_seconds"] > 0
    if trial and current is None:
        module.fail_json(msg="There is no release that a trial could give way to: deploy first. Nothing was changed.")
    with stack.releases.locked(module.params["lock_timeout"]):
        if trial:
            stack.end_trial_by_itself()
        if stack.is_current(release):
            return result | stack.deploy(stack.releases.current(), new=False)
        return result | stack.deploy(release, new=True)


def earlier_release(module: AnsibleModule, stack: Stack) -> Release:
    name = module.params["release"]
    release = stack.releases.read(name) if name else stack.releases.previous()
    if release is None:
        known = ", ".join(stack.releases.names()) or "none"
        wanted = f"no release {name}" if name else "no release that served before the current one"
        module.fail_json(msg=f"There is {wanted} on this host; there are: {known}. Nothing was changed.")
    return release


def run_previous(module: AnsibleModule, stack: Stack) -> dict:
    release = earlier_release(module, stack)
    need_docker(module, stack)
    current = stack.releases.current()
    steps = stack.steps(release)
    changed = any(step.changes for step in steps) or current is None or current.name != release.name
    diff = diff_of(current.definition if current else None, release.definition, steps)
    steps_as_told = [step._asdict() for step in steps]
    result = {"changed": changed, "differs": changed, "diff": diff, "steps": steps_as_told, "release": release.name}
    if module.check_mode or not (changed or steps):
        return result
    need_python_on_whales(module)
    with stack.releases.locked(module.params["lock_timeout"]):
        return result | stack.deploy(earlier_release(module, stack), new=False)


def run_started(module: AnsibleModule, stack: Stack) -> dict:
    current = stack.releases.current()
    if current is None:
        return {"changed": False, "differs": False, "steps": [], "services": []}
    need_docker(module, stack)
    steps = stack.steps(current)
    result = {
        "changed": any(step.changes for step in steps),
        "differs": bool(steps),
        "steps": [step._asdict() for step in steps],
        "services": current.plan["services"],
        "release": current.name,
    }
    if module.check_mode or not steps:
        return result
    need_python_on_whales(module)
    with stack.releases.locked(module.params["lock_timeout"]):
        return result | stack.deploy(stack.releases.current(), new=False)


def run_stopped(module: AnsibleModule, stack: Stack) -> dict:
    current = stack.releases.current()
    running = stack.running()
    result = {"changed": bool(running), "steps": [], "services": current.plan["services"] if current else []}
    if module.check_mode or not running:
        return result
    need_python_on_whales(module)
    with stack.releases.locked(module.params["lock_timeout"]):
        stack.docker.stop(stack.running())
    return result


def run_absent(module: AnsibleModule, stack: Stack) -> dict:
    present = bool(containers_of(stack.project, stack.docker.containers())) or stack.releases.current() is not None
    if module.check_mode or not present:
        return {"changed": present, "steps": []}
    need_python_on_whales(module)
    with stack.releases.locked(module.params["lock_timeout"]):
        return {"changed": True} | stack.remove()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "previous", "started", "stopped", "absent"],
                "default": "present",
            },
            "project": {"type": "str", "required": True},
            "directory": {"type": "path", "default": "/opt/blackwell-serving/stack"},
            "plan": {"type": "dict"},
            "compose": {"type": "str"},
            "definition": {"type": "dict"},
            "signatures": {"type": "list", "elements": "dict", "default": []},
            "release": {"type": "str", "default": ""},
            "volumes": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 900},
            "trial_seconds": {"type": "int", "default": 0},
            "unit": {"type": "str", "default": "blackwell-serving.service"},
            "venv": {"type": "path", "default": "/opt/blackwell-serving/venv"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        required_if=[("state", "present", ["plan", "compose", "definition"])],
        supports_check_mode=True,
    )
    stack = Stack(module)
    run = {
        "present": run_present,
        "previous": run_previous,
        "started": run_started,
        "stopped": run_stopped,
        "absent": run_absent,
    }[module.params["state"]]
    try:
        if not (module.check_mode or module.params["trial_seconds"]):
            stack.end_trial()
        result = run(module, stack)
    except Locked as holder:
        module.fail_json(
            msg=f"Another deployment still runs after {module.params['lock_timeout']} s: {holder}. Nothing was changed."
        )
    except DockerProblem as problem:
        module.fail_json(msg=str(problem), changed=True)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
