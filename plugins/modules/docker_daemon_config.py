#!/usr/bin/python
"""Set keys of Docker's daemon.json and have the running daemon take them over."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Set keys of Docker's daemon.json, keep the others, and have dockerd take them over
version_added: 0.2.0
description:
  - Merges settings into C(daemon.json) three ways, from what was set here last time, what stands in the file, and what
    is wanted now. Keys, runtimes and list entries that others wrote survive. What is no longer wanted is taken out, and
    a value of others that it had displaced comes back. When nothing is left that was set here, a file that holds what
    it held before is written as it was, to the letter, and one that was not there goes.
  - Maps are merged per key. Of C(registry-mirrors), C(insecure-registries), C(allow-nondistributable-artifacts),
    C(authorization-plugins), C(cdi-spec-dirs) and C(hosts) the entries are added to those that are there, of C(labels),
    C(exec-opts) and C(storage-opts) those with the same name are replaced. Other lists are replaced whole.
  - The new file is checked by C(dockerd --validate), with the flags of the running dockerd, before it takes the place
    of the old one.
  - dockerd is reloaded where that is enough, and restarted only where it must be. Where a restart is needed while
    containers hold a GPU, and is not allowed then, the module fails and the file stays as it was. A dockerd that does
    not come up with the new file is started again with the old one.
  - The values in force are read back with C(docker info), also when the file is already right.
options:
  settings:
    description: The settings that are wanted, as in C(daemon.json). Empty, what was set before is taken out.
    type: dict
    default: {}
  defaults:
    description:
      - Settings that are wanted unless somebody else had set the same key of the file before. C(log-driver) and
        C(log-opts) count as one key.
    type: dict
    default: {}
  owner:
    description: Who wants these settings. Each owner's settings are remembered apart, and two may not contradict.
    type: str
    default: main
  path:
    description:
      - The configuration file of dockerd. What was set last time is remembered beside it, in C(.<name>.managed).
    type: path
    default: /etc/docker/daemon.json
  service:
    description: The systemd unit of dockerd. Where it is not active, a dockerd with a pid file is sent SIGHUP.
    type: str
    default: docker.service
  restart:
    description:
      - Whether dockerd may be restarted at all. With V(never), RV(action=restart_needed) says what is left to do.
    type: str
    choices: [when_needed, never]
    default: when_needed
  restart_with_gpu_containers:
    description: Whether dockerd may be restarted while containers hold a GPU.
    type: bool
    default: false
  backup:
    description: Whether to keep a copy of the old file.
    type: bool
    default: true
  timeout:
    description: Seconds that dockerd has to take over the settings.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Merges and validates, and changes nothing. Containers that hold a GPU give a warning, not a failure.
  diff_mode:
    support: full
    description: Passwords in the addresses of proxies are not shown. A file that holds some is for root alone.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Register the NVIDIA runtime, and leave everything else as it is
  blackwell.serving.docker_daemon_config:
    owner: nvidia_container_toolkit
    settings:
      runtimes:
        nvidia:
          path: nvidia-container-runtime

- name: Take out again what this owner had set
  blackwell.serving.docker_daemon_config:
    owner: nvidia_container_toolkit
    settings: {}
"""

RETURN = r"""
changed_keys:
  description: Keys of the file that changed, as C(key), or C(key.name) inside a map.
  returned: always
  type: list
  elements: str
  sample: [live-restore, runtimes.nvidia]
action:
  description: What dockerd did, or would do in check mode, to take the settings over.
  returned: always
  type: str
  choices: [none, reload, restart, restart_needed]
action_keys:
  description: The keys that asked for RV(action).
  returned: always
  type: list
  elements: str
validated:
  description: Whether C(dockerd --validate) accepted a new file. V(false) where there is no dockerd that can tell.
  returned: always
  type: bool
effective:
  description: The wanted values that C(docker info) tells, as they are in force. In check mode, before any change.
  returned: always
  type: dict
backup_file:
  description: The copy of the old file.
  returned: when one was made
  type: str
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import daemon_json
from ansible_collections.blackwell.serving.plugins.module_utils.addresses import without_passwords
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.docker import gpu_containers

COMMAND_TIMEOUT = 60


def run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """The finished command; None where it does not exist or does not end in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None


class Dockerd:
    """The dockerd of this host, through its unit, its pid file and the docker command."""

    def __init__(self, service: str, settings: dict[str, Any]) -> None:
        self.service = service
        active = run("systemctl", "is-active", "--quiet", service)
        self.has_unit = active is not None and active.returncode == 0
        self.pid = self._main_pid() if self.has_unit else self._pid_of_file(settings)

    def _main_pid(self) -> int | None:
        answer = run("systemctl", "show", "--property=MainPID", "--value", self.service)
        return int(answer.stdout) if answer and answer.stdout.strip().isdigit() and int(answer.stdout) else None

    @staticmethod
    def _pid_of_file(settings: dict[str, Any]) -> int | None:
        try:
            pid = int(Path(settings.get("pidfile", "/var/run/docker.pid")).read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    @property
    def running(self) -> bool:
        return self.has_unit or self.pid is not None

    def flags(self) -> list[str]:
        """The command line of the running dockerd without its name and the configuration file."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[1:-1]
        except OSError:
            return []
        joined = re.sub(r"--config-file(=|\0)[^\0]*\0", "", "".join(f"{word}\0" for word in words))
        return joined.split("\0")[:-1]

    def info(self) -> dict[str, Any]:
        """The answer to `docker info`, empty while there is none."""
        answer = run("docker", "info", "--format", "{{json .}}")
        try:
            info = json.loads(answer.stdout) if answer and answer.returncode == 0 else {}
        except ValueError:
            return {}
        return info if info.get("ServerVersion") else {}

    def gpu_containers(self) -> list[str] | None:
        """Names of the running containers that hold a GPU; None where that cannot be told."""
        listed = run("docker", "ps", "--quiet", "--no-trunc")
        if listed is None or listed.returncode != 0:
            return None
        if not listed.stdout.split():
            return []
        inspected = run("docker", "inspect", "--type", "container", *listed.stdout.split())
        try:
            holders = gpu_containers(json.loads(inspected.stdout if inspected else ""))
        except ValueError:
            return None
        return [container["name"] for container in holders]

    def reload(self) -> str | None:
        """Have dockerd read its file again; the error, or None."""
        if self.has_unit:
            done = run("systemctl", "reload", self.service)
            return None if done and done.returncode == 0 else (done.stderr.strip() if done else "no answer")
        os.kill(self.pid, signal.SIGHUP)
        return None

    def restart(self) -> str | None:
        """Restart dockerd; the error, or None."""
        run("systemctl", "reset-failed", self.service)
        done = run("systemctl", "restart", self.service)
        if done and done.returncode == 0:
            return None
        journal = run("journalctl", "--unit", self.service, "--lines", "50", "--output", "cat", "--no-pager")
        last_words = re.findall(
            r"^failed to start daemon: .*|^unable to configure .*", journal.stdout if journal else "", re.M
        )
        return last_words[-1] if last_words else (done.stderr.strip().rstrip(".") if done else "no answer")


class Change:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(os.path.realpath(module.params["path"]))
        self.state_path = self.path.with_name(f".{self.path.name}.managed")
        self.wanted: dict[str, Any] = module.params["settings"]
        self.owner: str = module.params["owner"]
        self.after: dict[str, Any] = {}
        self.old_text = self._read_file()
        self.old_state = self.state_path.read_text("utf-8") if self.state_path.exists() else None
        self.result: dict[str, Any] = {"changed": False, "changed_keys": [], "action": "none", "action_keys": []}

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message, **(self.result | {"changed": False}))

    def run(self) -> None:
        before = self._read()
        records, original = self._remembered()
        record = records.get(self.owner, {})
        defaults = daemon_json.default_settings(before, record, self.wanted, self.module.params["defaults"])
        self.wanted = {**defaults, **self.wanted}
        others = {owner: kept["managed"] for owner, kept in records.items() if owner != self.owner}
        if contradicting := daemon_json.contradictions(self.wanted, others):
            self.fail(f"Other owners want other values in {self.path}: {', '.join(contradicting)}. It is as it was.")
        self.after, record = daemon_json.merge(before, record, self.wanted)
        after = self.after
        if defaults:
            record["defaults"] = sorted(defaults)
        new_records = {owner: kept for owner, kept in {**records, self.owner: record}.items() if kept}
        keys = daemon_json.changed_keys(before, after)
        write_file = bool(keys) or (self.old_text is None and bool(self.wanted))
        write_state = new_records != records
        text: str | None = daemon_json.render(after)
        if records and not new_records and not daemon_json.changed_keys(after, daemon_json.parse(original or "")):
            text, write_file = original, original != self.old_text
        dockerd = Dockerd(self.module.params["service"], before)
        info = dockerd.info() if dockerd.running else {}

        action, action_keys = self._action(keys, info) if dockerd.running else ("none", [])
        if action == "restart":
            action = self._restart_or_not(dockerd, action_keys)
        self.result |= {
            "changed": write_file or write_state or action in ("reload", "restart"),
            "changed_keys": keys,
            "action": action,
            "action_keys": action_keys,
            "diff": self._diff(before, after, there=(text if write_file else self.old_text) is not None),
            "validated": self._validate(dockerd, after) if write_file else False,
            "effective": {key: in_force for key, (_, in_force) in self._pairs(info).items()},
        }
        if self.module.check_mode:
            self.module.exit_json(**self.result)
        # The record goes first: without the file it is harmless, the file without it would make our settings foreign.
        if write_state:
            remembered = {"version": 1, "owners": new_records, "original": original}
            self._write(self.state_path, json.dumps(remembered, indent=2) + "\n" if new_records else None, 0o600)
        if write_file:
            if self.module.params["backup"] and self.old_text is not None:
                self.result["backup_file"] = self.module.backup_local(str(self.path))
            self._write(self.path, text, 0o644)
        if action in ("reload", "restart"):
            self._apply(dockerd, action)
        self.module.exit_json(**self.result)

    def _read_file(self) -> str | None:
        try:
            return self.path.read_text("utf-8") if self.path.exists() else None
        except UnicodeDecodeError:
            self.module.fail_json(msg=f"{self.path} is not JSON: it is not UTF-8 text. Nothing was changed.")

    def _read(self) -> dict[str, Any]:
        try:
            return daemon_json.parse(self.old_text or "")
        except daemon_json.DaemonJsonError as error:
            self.fail(f"{self.path} is {error}. Nothing was changed; repair the file, or move it away.")

    def _remembered(self) -> tuple[dict[str, Any], str | None]:
        """What each owner set, and what the file held before the first of them, from the file beside daemon.json."""
        try:
            known = json.loads(self.old_state) if self.old_state else {"owners": {}}
            return known["owners"], known.get("original", self.old_text)
        except (ValueError, KeyError, TypeError):
            self.module.warn(f"{self.state_path} cannot be read; all settings in {self.path} are taken as foreign.")
            return {}, self.old_text

    def _pairs(self, info: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """(wanted, in force) of our keys, with what others add to them."""
        ours = daemon_json.effective(self.wanted, info, os.path.realpath)
        pairs = daemon_json.effective(self.after, info, os.path.realpath)
        return {key: pair for key, pair in pairs.items() if key in ours}

    def _action(self, keys: list[str], info: dict[str, Any]) -> tuple[str, list[str]]:
        """(none, reload or restart; the keys that ask for it), for a running dockerd."""
        told = daemon_json.effective(self.after, info, os.path.realpath)
        missing = daemon_json.not_in_force(told)
        pending = daemon_json.not_in_force(self._pairs(info))
        asked: dict[str, list[str]] = {"restart": [], "reload": []}
        for key in dict.fromkeys([*keys, *pending]):
            action = daemon_json.action_for(key, self.after)
            if action == "reload" or key not in told or key in missing:
                asked[action].append(key)
        return next(((action, which) for action, which in asked.items() if which), ("none", []))

    def _restart_or_not(self, dockerd: Dockerd, keys: list[str]) -> str:
        if self.module.params["restart"] == "never":
            return "restart_needed"
        if not dockerd.has_unit:
            self.module.warn(f"dockerd must be restarted for {', '.join(keys)}, and {dockerd.service} does not run it.")
            return "restart_needed"
        if self.module.params["restart_with_gpu_containers"]:
            return "restart"
        holders = dockerd.gpu_containers()
        if holders == []:
            return "restart"
        why = f"a GPU is held by {', '.join(holders)}" if holders else "whether a container holds a GPU is not known"
        message = f"Docker must be restarted for {', '.join(keys)}, and {why}."
        if not self.module.check_mode:
            self.result["action_keys"] = keys
            self.fail(f"{message} {self.path} is as it was. Stop them first, or allow the restart.")
        self.module.warn(f"{message} Outside check mode this fails.")
        return "restart_needed"

    def _diff(self, before: dict[str, Any], after: dict[str, Any], there: bool) -> dict[str, str]:
        old = daemon_json.render(before) if self.old_text is not None else ""
        new = daemon_json.render(after) if there else ""
        header = str(self.path)
        return {
            "before_header": header,
            "after_header": header,
            "before": without_passwords(old),
            "after": without_passwords(new),
        }

    def _validate(self, dockerd: Dockerd, after: dict[str, Any]) -> bool:
        binary = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin:/sbin")
        if binary is None:
            return False
        with tempfile.NamedTemporaryFile("w", dir=self.module.tmpdir, suffix=".json") as candidate:
            candidate.write(daemon_json.render(after))
            candidate.flush()
            answer = run(binary, *dockerd.flags(), "--validate", "--config-file", candidate.name)
            if answer is None or "unknown flag: --validate" in answer.stderr:  # Engine 20.10 and older
                return False
            if answer.returncode != 0:
                said = without_passwords(answer.stderr.strip() or answer.stdout.strip())
                said = said.replace(f"unable to configure the Docker daemon with file {candidate.name}: ", "")
                self.fail(f"dockerd refuses the new {self.path}: {said}. The file is as it was.")
        return True

    def _write(self, path: Path, text: str | None, mode: int) -> None:
        """With no text, there is no file afterwards."""
        if text is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.module.tmpdir)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        new = not path.exists()
        self.module.atomic_move(name, str(path))
        if without_passwords(text) != text:
            path.chmod(0o600)
        elif new:
            path.chmod(mode)

    def _put_back(self) -> None:
        for path, text, mode in ((self.path, self.old_text, 0o644), (self.state_path, self.old_state, 0o600)):
            self._write(path, text, mode)

    def _apply(self, dockerd: Dockerd, action: str) -> None:
        error = dockerd.reload() if action == "reload" else dockerd.restart()
        info = {} if error else self._wait(dockerd)
        if action == "restart" and not info:
            self._put_back()
            if backup := self.result.pop("backup_file", None):
                Path(backup).unlink()
            again = dockerd.restart()
            outcome = f"dockerd does not start with that either: {again}" if again else "dockerd runs with it"
            reason = error or f"no answer after {self.module.params['timeout']} s"
            self.fail(
                f"dockerd did not start with the new {self.path}: {reason}. The old file was put back; {outcome}."
            )
        if error:
            self.fail(f"dockerd could not be reloaded: {error}")
        pairs = self._pairs(info)
        self.result["effective"] = {key: in_force for key, (_, in_force) in pairs.items()}
        if missing := daemon_json.not_in_force(pairs):
            told = "; ".join(f"{key} is {pairs[key][1]!r}, not {pairs[key][0]!r}" for key in missing)
            self.fail(
                f"dockerd was told to {action} with {self.path}, and still: {told}. A flag on its command line or an "
                f"error in its log (journalctl --unit {dockerd.service}) may be the reason."
            )

    def _wait(self, dockerd: Dockerd) -> dict[str, Any]:
        """`docker info` once the wanted values are in force, or its last answer."""
        end = time.monotonic() + self.module.params["timeout"]
        info: dict[str, Any] = {}
        while True:
            info = dockerd.info()
            if (info and not daemon_json.not_in_force(self._pairs(info))) or time.monotonic() >= end:
                return info
            time.sleep(0.2)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "default": {}},
            "defaults": {"type": "dict", "default": {}},
            "owner": {"type": "str", "default": "main"},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "service": {"type": "str", "default": "docker.service"},
            "restart": {"type": "str", "choices": ["when_needed", "never"], "default": "when_needed"},
            "restart_with_gpu_containers": {"type": "bool", "default": False},
            "backup": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    Change(module).run()


if __name__ == "__main__":
    main()
