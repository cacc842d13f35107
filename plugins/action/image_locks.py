"""Keep the lock file of an inventory, on the control node; the host itself is never contacted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.module_utils.image_decisions import ImageRefused, checked_locks
from ansible_collections.blackwell.serving.plugins.plugin_utils.lock_file import read_locks, text_of, why_not_writable
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import replace_file

ARGUMENTS = {"path": {"type": "path", "required": True}, "locks": {"type": "dict", "default": {}}}


class ActionModule(ActionBase):
    """``blackwell.serving.image_locks``: see plugins/modules/image_locks.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        path = Path(arguments["path"])
        try:
            before, locks = read_locks(path)
            new = checked_locks(arguments["locks"])
        except ImageRefused as refusal:
            raise AnsibleActionFail(str(refusal)) from refusal
        problem = why_not_writable(path)
        changed = any(locks.get(name) != lock for name, lock in new.items())
        locks |= new
        after = text_of(locks) if changed else before
        if changed and not self._task.check_mode:
            self._write(path, after, new, problem)
        result.update(changed=changed, locks=locks, problem=problem)
        if self._task.diff:
            result["diff"] = {
                "before": before,
                "after": after,
                "before_header": str(path),
                "after_header": str(path),
            }
        return result

    @staticmethod
    def _write(path: Path, text: str, new: dict[str, Any], problem: str) -> None:
        try:
            if not problem:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, text)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            lines = text_of(new).partition("serving_image_locks:\n")[2]
            raise AnsibleActionFail(
                f"{path} cannot be written: {problem}. Add this to serving_image_locks by hand, so that all hosts and "
                f"all later runs get the same images:\n{lines}"
            )
