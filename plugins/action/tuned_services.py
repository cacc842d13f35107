"""Keep in the inventory what was found by measuring; all on the control node."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import replace_file

KEY = "serving_tuned"
HEADER = """---
# Written by playbooks/benchmark.yml --tags tune: options that were faster on this host than those before, measured. A
# service's own extra_args win over them, and they count only for that version of the engine. Review it like any other
# change of the inventory; delete an entry to go back.
"""


class ActionModule(ActionBase):
    """``blackwell.serving.tuned_services``: see plugins/modules/tuned_services.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "path": {"type": "path", "required": True},
                "known": {"type": "dict", "default": {}},
                "tuned": {"type": "dict"},
            }
        )
        path, known, tuned = Path(arguments["path"]), arguments["known"], arguments["tuned"]
        try:
            before = path.read_text("utf-8") if path.exists() else ""
            held = (yaml.safe_load(before) or {}).get(KEY) if before else None
        except (OSError, yaml.YAMLError, AttributeError) as problem:
            raise AnsibleActionFail(f"{path} cannot be read: {problem}") from problem
        if problem := _why_not(path, held, known if tuned is None else None):
            raise AnsibleActionFail(problem)
        after = before
        if tuned is not None and tuned != (held or {}):
            plain = json.loads(json.dumps(tuned))  # Ansible's tagged strings are none that YAML knows
            after = HEADER + yaml.safe_dump({KEY: plain}, sort_keys=False, width=110)
        result.update(changed=after != before, path=str(path))
        if after != before and not self._task.check_mode:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, after)
            except OSError as problem:
                raise AnsibleActionFail(f"cannot write {path}: {problem.strerror}") from problem
        if self._task.diff and after != before:
            lines = difflib.unified_diff(
                before.splitlines(True), after.splitlines(True), f"before: {path}", f"after: {path}"
            )
            result["diff"] = [{"prepared": "".join(lines)}]
        return result


def _why_not(path: Path, held: Any, known: dict[str, Any] | None) -> str:
    """Why the file must not be written; empty where it may."""
    for beside in (path.parent.with_name(path.parent.name + suffix) for suffix in (".yml", ".yaml", ".json")):
        if path.parent.parent.name == "host_vars" and beside.is_file():
            # ansible/parsing/dataloader.py, find_vars_files: the directory is read instead of the file
            return (
                f"{path} is not written: with a directory {path.parent} Ansible would no longer read {beside}. Move "
                f"that file to {path.parent}/main.yml first, or name another file in benchmark_tuned_file."
            )
    if known is not None and held is not None and held != known:
        return (
            f"{path} holds another {KEY} than the variable of this host, so it would be overwritten unread. Is it "
            "beside the inventory that this run uses?"
        )
    return ""
