#!/usr/bin/python
"""Take away again what the collection put on a host, by the record that it kept there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: take_away
short_description: Take away again what the collection put on a host, and nothing else
version_added: 0.2.0
description:
  - Goes by the record that M(blackwell.serving.managed_files) and M(blackwell.serving.apt_package_set) keep on the
    host. A file that was there before gets its older content back; one that somebody changed since stays as it is.
  - Packages are purged if they were not installed before, and released if they were not held before. What apt would
    remove beyond that is refused before anything is done.
  - Units that were written here, and those of the packages that start at boot, are stopped and disabled first,
    containers removed by the labels of their Compose project, then files, packages and directories.
options:
  part:
    description:
      - What of the record is taken away, files of the V(services) or packages and files of V(provisioning). By default
        nothing of it, and only O(projects) and O(directories) go.
    type: str
    choices: [services, provisioning]
  projects:
    description: Compose projects whose containers and networks go.
    type: list
    elements: str
    default: []
  data:
    description:
      - Whether the volumes of O(projects) go too, which hold models, compiled kernels and what monitoring recorded, and
        the images that the releases and Compose files in O(directories) name. Images that stayed are remembered, and go
        in a later run that has this.
    type: bool
    default: false
  directories:
    description:
      - Directories that are the collection's alone. Containers of a Compose project that was started in one of them go
        as those of O(projects) do. One that a C(lock) is held in is waited for.
    type: list
    elements: path
    default: []
  record:
    description: Where the host remembers what was put there.
    type: path
    default: /var/lib/blackwell-serving/put_there.json
  lock_timeout:
    description: Seconds to wait for a deployment, or for another package manager, to finish.
    type: int
    default: 900
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Take the services away, and keep their models
  blackwell.serving.take_away:
    part: services
    projects: [serving]
    directories: [/opt/blackwell-serving/stack]
"""

RETURN = r"""
removed:
  description: What was, or in check mode would be, taken away or put back, in this order.
  returned: always
  type: list
  elements: str
  sample: [stop blackwell-serving.service, container qwen, file /etc/systemd/system/blackwell-serving.service]
kept:
  description: What was put there and stays, each with the reason.
  returned: always
  type: list
  elements: str
gone:
  description: Packages of others that had been in the way. They are not brought back.
  returned: always
  type: list
  elements: str
"""

import glob
import json
import os
import re
import shutil
from contextlib import ExitStack

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import image_reference
from ansible_collections.blackwell.serving.plugins.module_utils.put_there import Record, digest
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Locked, Releases

COMPOSE = ("compose.override.yaml", "compose.yaml")
UNITS = "/etc/systemd/system"
PROJECT, PLACE = "com.docker.compose.project", "com.docker.compose.project.working_dir"
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class Removal:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.record = Record(module.params["record"])
        self.removed: list[str] = []
        self.kept: list[str] = []
        self.part: str | None = module.params["part"]

    def run(self, *command: str, may_fail: bool = False) -> str:
        code, out, err = self.module.run_command(list(command), environ_update=ENVIRONMENT)
        if code and not may_fail:
            reason = "\n".join((out + err).strip().splitlines()[-10:])
            self.module.fail_json(msg=f"{' '.join(command[:6])} failed:\n{reason}", **self.result())
        return out if code == 0 else ""

    def do(self, what: str, *command: str) -> None:
        """Note it, and do it where this is no check."""
        if not self.module.check_mode:
            self.run(*command)
        self.removed.append(what)

    def result(self) -> dict:
        gone = self.record.packages["removed"] if self.part == "provisioning" else []
        return {
            "changed": bool(self.removed),
            "removed": self.removed,
            "kept": self.kept,
            "gone": gone,
            "diff": {"before": "".join(f"{line}\n" for line in self.removed), "after": ""},
        }

    # ---- services ----

    def stop_units(self) -> None:
        for path in self.record.files:
            name = os.path.basename(path)
            if self.record.files[path]["part"] != self.part or os.path.dirname(path) != UNITS:
                continue
            if name.endswith((".service", ".timer", ".path")) and os.path.exists(path):
                states = self.run("systemctl", "show", "--property=ActiveState,UnitFileState", "--value", name)
                if {"active", "activating", "enabled"} & set(states.split()):
                    self.do(f"stop {name}", "systemctl", "disable", "--now", name)

    def projects(self) -> list[str]:
        """Those that were asked for, and those that were started in one of the directories."""
        places = [f"label={PLACE}={directory}" for directory in self.module.params["directories"]]
        form = ["--format", f'{{{{.Label "{PROJECT}"}}}}']
        found = [self.docker("ps", "--all", "--filter", place, *form) for place in places]
        return list(dict.fromkeys([*self.module.params["projects"], *(name for names in found for name in names)]))

    def docker(self, *words: str) -> list[str]:
        """Lines that Docker prints; none where there is no engine."""
        return self.run("docker", *words, may_fail=True).splitlines() if shutil.which("docker") else []

    def remove_containers(self) -> None:
        for project in self.projects():
            label = ["--filter", f"label={PROJECT}={project}"]
            for name in self.docker("ps", "--all", *label, "--format", "{{.Names}}"):
                self.do(f"container {name}", "docker", "rm", "--force", "--volumes", name)
            for name in self.docker("network", "ls", *label, "--format", "{{.Name}}"):
                self.do(f"network {name}", "docker", "network", "rm", name)
            for name in self.docker("volume", "ls", *label, "--format", "{{.Name}}"):
                if self.module.params["data"]:
                    self.do(f"volume {name}", "docker", "volume", "rm", name)
                else:
                    self.kept.append(f"volume {name}: data, which was not asked for")

    def image_references(self) -> list[str]:
        found = []
        for directory in self.module.params["directories"]:
            for path in sorted(glob.glob(f"{directory}/releases/*/plan.json")):
                try:
                    with open(path, encoding="utf-8") as stream:
                        found += [service["image"] for service in json.load(stream)["services"]]
                except (OSError, ValueError, KeyError):
                    continue
            for name in COMPOSE:
                found += re.findall(r"^ +image: (\S+)$", content_of(os.path.join(directory, name)) or "", re.M)
        return list(dict.fromkeys(found))

    def remove_images(self, references: list[str]) -> None:
        for reference in references:
            names = self.names(reference)
            if not names or f"image {reference}" in self.removed:
                continue
            users = self.docker("ps", "--all", "--filter", f"ancestor={reference}", "--format", "{{.Names}}")
            others = [name for name in users if f"container {name}" not in self.removed]
            if not self.module.params["data"]:
                self.image_stays(reference, "data, which was not asked for")
            elif others:
                self.image_stays(reference, f"{', '.join(others)} uses it")
            else:
                for name in names:
                    self.do(f"image {name}", "docker", "rmi", name)

    def image_stays(self, reference: str, why: str) -> None:
        self.kept.append(f"image {reference}: {why}")
        self.record.image(reference)

    def names(self, reference: str) -> list[str]:
        """The reference, and for one by digest the tag that it was pulled by; none where there is no such image."""
        form = "{{.Id}}{{range .RepoTags}} {{.}}{{end}}"
        found = self.docker("image", "inspect", "--format", form, reference)
        parsed = image_reference.parse(reference)
        tags = found[0].split()[1:] if found and parsed.digest else []
        return [reference, *(tag for tag in tags if tag.rpartition(":")[0] == parsed.name)] if found else []

    # ---- packages ----

    def purge(self) -> None:
        status = self.run("dpkg-query", "--show", "--showformat=${Package} ${db:Status-Want} ${db:Status-Status}\n")
        there = {name: (want, state) for name, want, state in (line.split() for line in status.splitlines())}
        ours = [
            name
            for name in self.record.packages["installed"]
            if there.get(name, ("", ""))[1] not in ("", "not-installed")
        ]
        held = [name for name in self.record.packages["held"] if there.get(name, ("", ""))[0] == "hold"]
        command = ["apt-get", "--yes", "--quiet", "--allow-change-held-packages", "purge", *ours]
        units = self.enabled_units([name for name in ours if there[name][1] == "installed"])
        if ours:
            plan = self.run(*command[:1], "--simulate", *command[1:])
            others = sorted({*re.findall(r"^(?:Remv|Purg|Inst) (\S+)", plan, re.M)} - {*ours})
            if others:
                self.module.fail_json(
                    msg=f"apt would also have to touch {', '.join(others)}, which others installed since, or need. "
                    "Remove those first. No package was removed.",
                    **self.result(),
                )
        if not self.module.check_mode:
            if held:
                self.run("apt-mark", "unhold", *held)
            if units:
                self.run("systemctl", "disable", "--now", *units)
            if ours:
                timeout = f"DPkg::Lock::Timeout={self.module.params['lock_timeout']}"
                self.run(*command[:1], "-o", timeout, *command[1:])
        self.removed += [f"stop {unit}" for unit in units]
        self.removed += [f"hold on {name}" for name in held if name not in ours]
        self.removed += [f"package {name}" for name in ours]
        self.record.packages.update(installed=[], held=[])

    def enabled_units(self, packages: list[str]) -> list[str]:
        """Units of the packages that start at boot: not every package disables its own when it goes."""
        paths = self.run("dpkg-query", "--listfiles", *packages).splitlines() if packages else []
        units = dict.fromkeys(
            os.path.basename(path) for path in paths if re.match(r"(/usr)?/lib/systemd/system/[^/@]+\.\w+$", path)
        )
        listed = (
            self.run("systemctl", "list-unit-files", "--no-legend", "--state=enabled", *units, may_fail=True)
            if units
            else ""
        )
        return [line.split()[0] for line in listed.splitlines()]

    # ---- files ----

    def files(self) -> None:
        paths = [path for path, known in self.record.files.items() if known["part"] == self.part]
        touched = []
        for path in paths:
            known = self.record.files[path]
            now = content_of(path)
            if (None if now is None else digest(now)) != known["digest"]:
                if now is not None:
                    self.kept.append(f"file {path}: somebody changed it since")
            elif known["before"] is not None:
                touched.append(path)
                self.removed.append(f"older content of {path} put back")
                self.put_back(path, **known["before"])
            elif now is not None:
                touched.append(path)
                self.removed.append(f"file {path}")
                if not self.module.check_mode:
                    os.unlink(path)
                    remove_empty(os.path.dirname(path))
            if not self.module.check_mode:
                del self.record.files[path]
        if any(path.startswith("/etc/modprobe.d/") for path in touched):
            self.do("nouveau in the initramfs is no longer kept off", "update-initramfs", "-u", "-k", "all")
        if any(path.startswith(UNITS) for path in touched) and not self.module.check_mode:
            self.run("systemctl", "daemon-reload")

    def put_back(self, path: str, content: str, mode: int) -> None:
        if self.module.check_mode:
            return
        temporary = os.path.join(self.module.tmpdir, "older")
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.write(content)
        os.chmod(temporary, mode)
        self.module.atomic_move(temporary, path, keep_dest_attrs=False)

    def directories(self) -> None:
        for directory in self.module.params["directories"]:
            if os.path.isdir(directory):
                self.removed.append(f"directory {directory}")
                if not self.module.check_mode:
                    shutil.rmtree(directory)

    def all(self) -> dict:
        locks = [path for path in self.module.params["directories"] if os.path.exists(os.path.join(path, "lock"))]
        with ExitStack() as stack:
            for path in [] if self.module.check_mode else locks:
                stack.enter_context(Releases(path).locked(self.module.params["lock_timeout"]))
            references = self.image_references()
            if self.module.params["data"]:  # those that an earlier run left behind
                references += [name for name in self.record.images if name not in references]
                self.record.images.clear()
            self.stop_units()
            self.remove_containers()
            self.remove_images(references)
            if self.part == "provisioning":
                self.purge()
            self.files()
            if not self.module.check_mode:
                self.record.save()
            self.directories()
        return self.result()


def content_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def remove_empty(directory: str) -> None:
    """A drop-in directory that held nothing else."""
    if directory.endswith(".d") and os.path.dirname(directory) == UNITS and not os.listdir(directory):
        os.rmdir(directory)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "part": {"type": "str", "choices": ["services", "provisioning"]},
            "projects": {"type": "list", "elements": "str", "default": []},
            "data": {"type": "bool", "default": False},
            "directories": {"type": "list", "elements": "path", "default": []},
            "record": {"type": "path", "default": "/var/lib/blackwell-serving/put_there.json"},
            "lock_timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Removal(module).all())
    except Locked as holder:
        module.fail_json(msg=f"A deployment still runs: {holder}. Nothing was changed.")


if __name__ == "__main__":
    main()
