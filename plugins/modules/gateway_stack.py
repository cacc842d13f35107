#!/usr/bin/python
"""Run a gateway: smg, the front with TLS and keys, and the workers that smg has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_stack
short_description: Run smg and its front as a Compose project, and tell smg its workers
version_added: 0.4.0
description:
  - Brings the gateway's containers, its configuration and its list of workers to what is asked for, in one call. What
    is as it should be stays untouched.
  - A new configuration of the front is tried by the front's own program first. One that it refuses changes nothing. A
    new one is taken over without losing a request, and so are new workers; neither restarts a container.
  - A container that does not come up gives way to the one before it, with its configuration, and the module fails.
  - Changes need python-on-whales, see O(venv).
options:
  state:
    description: V(present) runs the gateway, V(absent) removes its containers and its directory.
    type: str
    choices: [present, absent]
    default: present
  project:
    description: Name of the Compose project.
    type: str
    default: blackwell-gateway
  directory:
    description: Directory of the gateway on its host.
    type: path
    default: /opt/blackwell-serving/gateway
  compose:
    description: The text of C(compose.yaml). Required for V(present).
    type: str
  definition:
    description: The same Compose file as a dictionary. Required for V(present).
    type: dict
  images:
    description: What is locked, C(digest) or C(id) by reference, as in C(serving_image_locks).
    type: dict
    default: {}
  front:
    description: Files that the front reads, by name. Empty for a gateway without a front.
    type: dict
    default: {}
  secrets:
    description: Further files that the front reads, of mode 0600, by name. No output shows them.
    type: dict
    default: {}
  workers:
    description:
      - The services of each GPU host, as a list of C(service), C(url) and C(model) by host. Hosts that are not named
        here keep the workers they have.
    type: dict
    default: {}
  known_hosts:
    description: All GPU hosts. Workers of other hosts are removed.
    type: list
    elements: str
    default: []
  check_url:
    description: What answers 200 once the gateway works. A certificate is not verified.
    type: str
    default: ""
  timeout:
    description: Seconds in which the containers have to come up.
    type: int
    default: 60
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
    description: Says what would be done. A new configuration of the front is not tried.
  diff_mode:
    support: full
    description: The steps, the workers, and the files that hold no secrets.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Run the gateway
  blackwell.serving.gateway_stack:
    compose: "{{ gateway_compose_text }}"
    definition: "{{ gateway_compose_text | from_yaml }}"
    workers:
      box1:
        - {service: qwen, url: "http://10.0.0.11:30002", model: Qwen/Qwen2.5-3B-Instruct}
    known_hosts: [box1]
"""

RETURN = r"""
steps:
  description: What was done, in this order, or would be done in check mode.
  returned: success
  type: list
  elements: str
  sample: ["smg: create, it has no container", "front: reload"]
locked:
  description: Images that had no lock and were pulled by their tag, C(digest) or C(id) by reference.
  returned: success
  type: dict
"""

import contextlib
import json
import os
import shutil
import ssl
import time
import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import image_reference
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_files import (
    Front,
    FrontFile,
    digest_of,
    read_file,
    replace_file,
)
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_workers import (
    GatewayError,
    Manifest,
    merged,
)
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import (
    DockerProblem,
    StackDocker,
    load_python_on_whales,
)
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import (
    Step,
    containers_of,
    labels_file,
    name_conflicts,
    steps_to,
)

FRONT = "nginx"
FRONT_MOUNT = "/etc/nginx/blackwell"
COMPOSE, OVERRIDE = "compose.yaml", "compose.override.yaml"


class NotUp(Exception):
    """A container did not come up; the message says which and why."""


class Gateway:
    """The gateway of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        parameters = module.params
        self.directory = parameters["directory"]
        self.docker = StackDocker(Host(), parameters["project"], parameters["docker_socket"])
        self.front = Front(self.directory)
        self.manifest = Manifest(os.path.join(self.directory, "workers", "workers.json"))
        self.locked: dict = {}

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    # ---- what is wanted ----

    def pinned(self, reference: str, pull: bool) -> str:
        """The reference with its digest; pulled by its tag, and remembered, where nothing is locked."""
        parsed = image_reference.parse(reference)
        lock = self.module.params["images"].get(reference) or {}
        if parsed.digest or lock.get("id"):
            return reference
        if lock.get("digest"):
            return parsed.pinned(lock["digest"])
        if not pull:
            return reference
        self.docker.pull(reference)
        (image,) = self.docker.host.docker_api(self.docker.socket, [f"/images/{reference}/json"])
        digests = [name.partition("@")[2] for name in (image or {}).get("RepoDigests") or []]
        self.locked[reference] = {"digest": digests[0]} if digests else {"id": (image or {}).get("Id")}
        return parsed.pinned(digests[0]) if digests else reference

    def definition(self, pull: bool) -> dict:
        definition = json.loads(json.dumps(self.module.params["definition"]))
        for service in definition["services"].values():
            service["image"] = self.pinned(service["image"], pull)
        return definition

    def front_files(self) -> dict:
        parameters = self.module.params
        public = {name: FrontFile(content, 0o644) for name, content in parameters["front"].items()}
        return public | {name: FrontFile(content, 0o600) for name, content in parameters["secrets"].items()}

    def compose_files(self, definition: dict) -> dict:
        """What Compose reads; the second one pins the images and labels the containers."""
        override = labels_file(definition)
        for name, service in definition["services"].items():
            head = f"  {name}:\n"
            override = override.replace(head, f"{head}    image: {service['image']}\n", 1)
        return {COMPOSE: self.module.params["compose"], OVERRIDE: override}

    def steps(self, definition: dict) -> list:
        images = self.docker.images(service["image"] for service in definition["services"].values())
        containers = containers_of(self.docker.project, self.docker.containers())
        found = steps_to(definition, list(definition["services"]), {}, containers, images)
        return [step for step in found if step.changes]

    def new_workers(self) -> tuple:
        before = self.manifest.workers()
        return before, merged(before, self.module.params["workers"], self.module.params["known_hosts"])

    # ---- doing it ----

    def pull_missing(self, definition: dict) -> None:
        references = [service["image"] for service in definition["services"].values()]
        for reference, identity in self.docker.images(references).items():
            if identity is None:
                self.docker.pull(reference)

    def try_front(self, definition: dict, files: dict) -> None:
        """Let the front's own program read the new configuration, with the files that it will have."""
        self.front.write_trial(files)
        try:
            service = definition["services"][FRONT]
            mounts = []
            for volume in service.get("volumes", []):
                source, target = volume.split(":")[:2]
                mounts += ["--volume", f"{self.front.trial if target == FRONT_MOUNT else source}:{target}:ro"]
            temporary = [word for path in service.get("tmpfs", []) for word in ("--tmpfs", path)]
            # With the host's network, because it also tries to listen; a port that the running one has is no failure.
            words = ["docker", "run", "--rm", "--network", "host", "--read-only", *temporary, *mounts]
            tried = self.docker.host.run([*words, service["image"], *service["command"], "-t", "-q"], timeout=60)
        finally:
            self.front.drop_trial()
        if tried.status != 0:
            said = "\n".join((tried.stderr + tried.stdout).strip().splitlines()[-5:])
            self.module.fail_json(msg=f"The front's new configuration is refused. Nothing was changed.\n{said}")

    def apply_steps(self, steps: list) -> None:
        files = [self.path(COMPOSE), self.path(OVERRIDE)]
        containers = containers_of(self.docker.project, self.docker.containers())
        for step in steps:
            there = [container.id for container in containers if container.service == step.service]
            if step.clears:
                self.docker.remove(there)
            if step.action == "restart":
                self.docker.stop(there)
            if step.action != "remove":
                self.docker.start(files, step.service)

    def wait(self, services: list) -> None:
        """Until the containers run, and the address that is asked answers; raises NotUp."""
        end = time.monotonic() + self.module.params["timeout"]
        reason = ""
        while time.monotonic() < end:
            reason = self.not_up(services)
            if not reason:
                return
            time.sleep(0.5)
        raise NotUp(reason)

    def not_up(self, services: list) -> str:
        for name in services:
            container = self.docker.container_of(name)
            state = (container or {}).get("State") or {}
            health = (state.get("Health") or {}).get("Status", "healthy")
            if state.get("Status") != "running" or health != "healthy" or container.get("RestartCount"):
                last = self.docker.log(container["Id"], tail=8) if container else []
                said = "".join(f"\n  {line}" for _, line in last)
                return f"{name} does not come up ({state.get('Status', 'no container')}, {health}).{said}"
        url = self.module.params["check_url"]
        if url:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            try:
                with urllib.request.urlopen(url, timeout=5, context=context):
                    pass
            except OSError as problem:
                return f"{url} does not answer: {problem}"
        return ""

    def deploy(self, definition: dict, files: dict, front: dict, steps: list) -> list:
        done = [f"{step.service}: {step.action}, {step.reason}" for step in steps]
        kept = {name: read_file(self.path(name)) for name in files}
        kept_front = self.front.files()
        for name, content in files.items():
            replace_file(self.path(name), content, 0o644)
        self.front.write(front)
        try:
            self.apply_steps(steps)
            digest = digest_of(front)
            started = [step.service for step in steps if step.action != "remove"]
            if FRONT in definition["services"] and FRONT not in started and digest != self.front.applied():
                self.reload()
                done.append("front: reload")
            self.wait(list(definition["services"]))
            self.front.set_applied(digest)
        except (NotUp, DockerProblem) as problem:
            self.come_back(problem, kept, kept_front)
        return done

    def reload(self) -> None:
        container = self.docker.container_of(FRONT)
        sent = self.docker.host.run(["docker", "kill", "--signal", "HUP", container["Id"]])
        if sent.status != 0:
            raise DockerProblem(f"The front cannot be told to read its configuration: {sent.stderr.strip()}")

    def come_back(self, problem: Exception, kept: dict, kept_front: dict) -> None:
        """With the files of before, start what ran before, and fail."""
        if any(content is None for content in kept.values()):
            self.module.fail_json(msg=f"{problem}\nThere was no gateway before.", changed=True)
        for name, content in kept.items():
            replace_file(self.path(name), content, 0o644)
        self.front.write(kept_front)
        message = str(problem)
        try:
            services = self.docker.compose([self.path(COMPOSE), self.path(OVERRIDE)]).compose.config().services
            containers = containers_of(self.docker.project, self.docker.containers())
            self.docker.remove([container.id for container in containers])
            for name in services:
                self.docker.start([self.path(COMPOSE), self.path(OVERRIDE)], name)
            self.wait(list(services))
            message += "\n\nThe gateway runs as before."
        except (NotUp, DockerProblem) as second:
            message += f"\n\nThe gateway of before did not come back either: {second}"
        self.module.fail_json(msg=message, changed=True)


def shown(gateway: Gateway, files: dict, steps: list, workers: tuple) -> dict:
    """Before and after, without the secrets."""
    texts = []
    for when in (0, 1):
        lines = [f"{step.service}: {step.action}, {step.reason}" for step in steps] if when else []
        lines += [f"worker {worker['id']}  {worker['model_id']}  {worker['url']}" for worker in workers[when]]
        texts.append("".join(f"{line}\n" for line in lines))
    diffs = [{"before_header": "gateway", "after_header": "gateway", "before": texts[0], "after": texts[1]}]
    public = {f"front/{name}": content for name, content in gateway.module.params["front"].items()}
    for name, content in (public | files).items():
        before = read_file(gateway.path(name)) or ""
        if before != content:
            path = gateway.path(name)
            diffs.append({"before_header": path, "after_header": path, "before": before, "after": content})
    return diffs


def run_present(module: AnsibleModule, gateway: Gateway) -> dict:
    there = gateway.docker.answers() if module.check_mode else gateway.docker.answers_again()
    if not there and not module.check_mode:
        module.fail_json(msg="No Docker engine answers: run playbooks/gateway.yml without --tags. Nothing was changed.")
    unlocked = [
        service["image"]
        for service in module.params["definition"]["services"].values()
        if gateway.pinned(service["image"], False) == service["image"] and "@" not in service["image"]
    ]
    if unlocked and not module.check_mode:
        load_python_on_whales(module.params["venv"])
    definition = gateway.definition(pull=not module.check_mode)
    conflicts = name_conflicts(definition, gateway.docker.project, gateway.docker.containers()) if there else []
    if conflicts:
        module.fail_json(msg=f"{'; '.join(conflicts)}. Remove that container. Nothing was changed.")
    files, front, workers = gateway.compose_files(definition), gateway.front_files(), gateway.new_workers()
    steps = (
        gateway.steps(definition)
        if there
        else [Step(n, "create", "there is no Docker") for n in definition["services"]]
    )
    same_files = all(read_file(gateway.path(name)) == content for name, content in files.items())
    same_front = gateway.front.files() == front and gateway.front.applied() == digest_of(front)
    same_workers = workers[0] == workers[1] and read_file(gateway.manifest.path) is not None
    changed = bool(steps) or not (same_files and same_front and same_workers)
    result = {
        "changed": changed,
        "steps": [f"{step.service}: {step.action}, {step.reason}" for step in steps],
        "locked": gateway.locked,
        "diff": shown(gateway, files, steps, workers) if changed else [],
    }
    if module.check_mode or not changed:
        return result
    load_python_on_whales(module.params["venv"])
    os.makedirs(gateway.path("workers"), mode=0o755, exist_ok=True)
    try:
        gateway.pull_missing(definition)
    except DockerProblem as problem:
        module.fail_json(msg=f"An image cannot be pulled, nothing was changed: {problem}")
    if FRONT in definition["services"] and not same_front:
        gateway.try_front(definition, front)
    gateway.manifest.change(
        lambda before: merged(before, module.params["workers"], module.params["known_hosts"]), create=True
    )
    if steps or not (same_files and same_front):
        result["steps"] = gateway.deploy(definition, files, front, steps)
    return result


def run_absent(module: AnsibleModule, gateway: Gateway) -> dict:
    there = gateway.docker.answers()
    containers = containers_of(gateway.docker.project, gateway.docker.containers()) if there else []
    present = bool(containers) or os.path.isdir(gateway.directory)
    result = {"changed": present, "steps": [f"{container.service}: remove" for container in containers], "locked": {}}
    if module.check_mode or not present:
        return result
    if containers:
        load_python_on_whales(module.params["venv"])
        gateway.docker.remove([container.id for container in containers])
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(gateway.directory)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "project": {"type": "str", "default": "blackwell-gateway"},
            "directory": {"type": "path", "default": "/opt/blackwell-serving/gateway"},
            "compose": {"type": "str"},
            "definition": {"type": "dict"},
            "images": {"type": "dict", "default": {}},
            "front": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "workers": {"type": "dict", "default": {}},
            "known_hosts": {"type": "list", "elements": "str", "default": []},
            "check_url": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 60},
            "venv": {"type": "path", "default": "/opt/blackwell-serving/venv"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        required_if=[("state", "present", ["compose", "definition"])],
        supports_check_mode=True,
    )
    gateway = Gateway(module)
    try:
        result = (run_present if module.params["state"] == "present" else run_absent)(module, gateway)
    except (DockerProblem, GatewayError) as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
