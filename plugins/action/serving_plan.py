"""Plan the services of a host on the control node; the host itself is never contacted."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.module_utils.plan_error import PlanError
from ansible_collections.blackwell.serving.plugins.module_utils.plan_text import headline, plan_text
from ansible_collections.blackwell.serving.plugins.plugin_utils import catalog_files, plan_files
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog
from ansible_collections.blackwell.serving.plugins.plugin_utils.declared_variables import (
    declared_names,
    unknown_variables,
)
from ansible_collections.blackwell.serving.plugins.plugin_utils.named_groups import named_groups
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import (
    current_files,
    read_benchmark,
    render,
    write_files,
)

ARGUMENTS = {
    "mode": {"type": "str", "choices": ["preview", "apply"], "default": "preview"},
    "gpus": {"type": "raw", "required": True},
    "services": {"type": "raw", "required": True},
    "service_overrides": {"type": "dict", "default": {}},
    "bind_address": {"type": "str", "default": "127.0.0.1"},
    "gpu_request": {"type": "str", "choices": ["cdi", "deploy"], "default": "cdi"},
    "output_dir": {"type": "path", "required": True},
    "project_name": {"type": "str", "default": "serving"},
    "image_locks": {"type": "dict", "default": {}},
    "models_offline": {"type": "bool", "default": False},
    "fleet_interface": {"type": "str", "default": ""},
    "tuned": {"type": "raw", "default": {}},
}
DECLARED = (
    "mode",
    "gpus",
    "services",
    "service_overrides",
    "bind_address",
    "gpu_request",
    "project_name",
    "image_locks",
    "models_offline",
    "fleet_interface",
    "tuned",
)

# Ansible runs each host's task in a fork of one process, which has imported this module by then. What that process has
# read, no fork reads again: half of the time that a host takes.
catalog_files.read_ahead()
plan_files.read_ahead()
declared_names()


class ActionModule(ActionBase):
    """``blackwell.serving.serving_plan``: see plugins/modules/serving_plan.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        host = variables["inventory_hostname"]
        declaration = {key: arguments[key] for key in DECLARED}
        declaration["node_groups"] = named_groups(arguments["services"], arguments["service_overrides"], variables)
        plan = plan_host(host, declaration, load_catalog())
        problems = unknown_variables(variables)
        if problems:
            _refuse(plan, problems)
        directory = Path(arguments["output_dir"])
        files, before = render(plan, read_benchmark(directory)), current_files(directory)
        changed = files != before
        if changed and not self._task.check_mode:
            try:
                write_files(directory, files, before)
            except OSError as problem:
                raise AnsibleActionFail(f"cannot write to {directory}: {problem.strerror}") from problem
        result.update(
            changed=changed,
            plan=plan,
            text=plan_text(plan),
            summary=headline(plan),
            output_dir=str(directory),
            files=sorted(files),
            compose=files.get("compose.yaml", ""),
        )
        if self._task.diff:
            result["diff"] = _diff(directory, before, files)
        if plan["verdict"] != "fits":
            result.update(failed=True, msg=plan_text(plan))
        return result


def _refuse(plan: dict[str, Any], problems: list[PlanError]) -> None:
    plan.update(
        verdict="invalid",
        errors=[*(problem.as_dict() for problem in problems), *plan["errors"]],
        gpus=[],
        services=[],
        warnings=[],
    )


def _diff(directory: Path, before: dict[str, str], after: dict[str, str]) -> list[dict[str, str]]:
    """Prepared diffs of the files that people read; report.html and plan.json say the same at length."""
    diffs = []
    for name in ("compose.yaml", "plan.txt"):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            lines = difflib.unified_diff(
                old.splitlines(True), new.splitlines(True), f"before: {directory / name}", f"after: {directory / name}"
            )
            diffs.append({"prepared": "".join(lines)})
    return diffs
