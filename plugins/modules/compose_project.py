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
  - All services have to run and to be healthy in the end. If not, the files that were there come back, with the
    containers that ran with them, and the module fails with the last lines of the log.
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
  images:
    description:
      - What is locked, C(digest) or C(id) by reference, as in C(serving_image_locks). It decides, whatever a tag names
        by now. An image without a lock is had by its tag, see RV(locked). Left out, tags decide.
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
        description:
          - Command in the service's container that judges the new files, before anything moves. A status other than 0
            refuses them, and nothing changes. For a service that is made anew it runs in a container made for it alone.
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
locked:
  description: Images that had no lock and were had by their tag, C(digest) or C(id) by reference.
  returned: with O(images)
  type: dict
rolled_back:
  description: Whether what ran before runs again.
  returned: when something did not come up
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.compose_project import File, Project, Reload
from ansible_collections.blackwell.serving.plugins.module_utils.compose_runner import Runner, answer, take_down
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.project_images import ProjectImages
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import StackDocker


def project_of(parameters: dict, images: dict) -> Project:
    files = [
        File(entry["path"], entry["content"], entry["mode"], entry["owner"], entry["group"], kind == "secrets")
        for kind in ("files", "secrets")
        for entry in parameters[kind]
    ]
    reloads = [
        Reload(entry["service"], entry["files"], entry["check"], entry["command"], entry["signal"])
        for entry in parameters["reload"]
    ]
    return Project(parameters["project"], parameters["definition"], parameters["compose"], files, reloads, images)


def run(module: AnsibleModule) -> dict:
    parameters = module.params
    docker = StackDocker(Host(), parameters["project"], parameters["docker_socket"])
    how = (module.check_mode, parameters["venv"], parameters["lock_timeout"])
    if parameters["state"] == "absent":
        return take_down(docker, parameters["directory"], parameters["volumes"], *how)
    if parameters["images"] is None:
        pinned, more = {}, {}
    else:
        images = ProjectImages(docker, parameters["images"])
        pinned = images.pin(parameters["definition"], module.check_mode, parameters["venv"])
        more = {"locked": images.locked}
    runner = Runner(project_of(parameters, pinned), docker, parameters["directory"], parameters["wait_timeout"])
    return runner.run(*how) | more


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
            "images": {"type": "dict"},
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
    answer(module, lambda: run(module))


if __name__ == "__main__":
    main()
