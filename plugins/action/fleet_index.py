"""Write one page of all hosts that were planned, on the control node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.module_utils.fleet_index import FleetHost, index_text, index_view
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import read_plan, render_index, replace_file

PAGE = "index.html"
ARGUMENTS = {
    "output_dir": {"type": "path", "required": True},
    "hosts": {"type": "list", "elements": "str", "required": True},
    "planned": {"type": "dict", "default": {}},
}
# Groups that say nothing of where a host stands or what it is.
EVERYBODYS_GROUPS = frozenset({"all", "ungrouped", "serving_gpu_hosts"})


class ActionModule(ActionBase):
    """``blackwell.serving.fleet_index``: see plugins/modules/fleet_index.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        directory = Path(arguments["output_dir"])
        groups = _groups((task_vars or {})["groups"])
        view = index_view(
            [
                FleetHost(name, groups.get(name, ()), arguments["planned"].get(name) or read_plan(directory / name))
                for name in arguments["hosts"]
            ]
        )
        page, text = directory / PAGE, render_index(view)
        changed = not page.is_file() or page.read_text(encoding="utf-8") != text
        if changed and not self._task.check_mode:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                replace_file(page, text)
            except OSError as problem:
                raise AnsibleActionFail(f"cannot write {page}: {problem.strerror}") from problem
        result.update(changed=changed, page=str(page), text=index_text(view, str(page)), total=view["total"])
        return result


def _groups(inventory: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """The groups of each host, by name."""
    found: dict[str, list[str]] = {}
    for group in sorted(set(inventory) - EVERYBODYS_GROUPS):
        for host in inventory[group]:
            found.setdefault(host, []).append(group)
    return {host: tuple(names) for host, names in found.items()}
