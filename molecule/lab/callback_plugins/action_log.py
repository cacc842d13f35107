"""Write down every action that a play runs on a host, one JSON line each, for tests that count and compare them."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: action_log
    type: notification
    short_description: Log the actions that a play runs on hosts
    description:
      - Appends one JSON line for each action on a host, each item of a loop counted, to the file that the environment
        variable E(LAB_ACTION_LOG) names. Without that variable it does nothing.
      - Actions that run on the control node (debug, set_fact, assert, includes, delegated ones …) are not logged.
"""

ON_CONTROL_NODE = {
    "add_host",
    "assert",
    "bundle_manifest",
    "debug",
    "fail",
    "fleet_index",
    "gateway_certificate",
    "group_by",
    "image_locks",
    "import_playbook",
    "import_role",
    "import_tasks",
    "include_role",
    "include_tasks",
    "include_vars",
    "meta",
    "pause",
    "serving_plan",
    "set_fact",
    "set_stats",
    "validate_argument_spec",
}


class CallbackModule(CallbackBase):
    """Logs ``{run, check, host, role, task, item, action, changed, failed}``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "action_log"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.path = os.environ.get("LAB_ACTION_LOG")
        self.playbook = ""

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.playbook = os.path.basename(playbook._file_name)

    def v2_runner_on_ok(self, result: Any) -> None:
        if "results" not in result._result or not result._task.loop:
            self._log(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if "results" not in result._result or not result._task.loop:
            self._log(result, failed=True)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        self._log(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self._log(result, failed=True)

    def _log(self, result: Any, failed: bool = False) -> None:
        task = result._task
        action = task.action.rsplit(".", 1)[-1]
        if not self.path or action in ON_CONTROL_NODE or task.delegate_to:
            return
        entry = {
            "run": f"{self.playbook} {os.getpid()}",
            "playbook": self.playbook,
            "check": bool(task.check_mode),
            "host": result._host.get_name(),
            "role": task._role.get_name() if task._role else None,
            "task": task.get_name(),
            "item": str(result._result.get("_ansible_item_label", "")) or None,
            "action": action,
            "changed": bool(result._result.get("changed")),
            "failed": failed,
        }
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
