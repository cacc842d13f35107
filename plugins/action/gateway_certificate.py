"""Give a gateway a certificate of a private authority, on the control node; the host itself is never contacted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.plugin_utils.private_ca import PrivateCa

ARGUMENTS = {
    "directory": {"type": "path", "required": True},
    "name": {"type": "str", "required": True},
    "names": {"type": "list", "elements": "str", "default": []},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


class ActionModule(ActionBase):
    """``blackwell.serving.gateway_certificate``: see plugins/modules/gateway_certificate.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        authority = PrivateCa(Path(arguments["directory"]).absolute())
        name, names = arguments["name"], arguments["names"]
        if arguments["state"] == "absent":
            gone = authority.of(name)
            if gone and not self._task.check_mode:
                authority.remove(gone)
            result.update(changed=bool(gone), diff={"before": "".join(f"{path}\n" for path in gone), "after": ""})
            return result
        if not names:
            raise AnsibleActionFail(f"names: what clients call {name} is missing. Nothing was changed.")
        changed = not authority.is_current(name, names)
        if changed and not self._task.check_mode:
            try:
                authority.issue(name, names)
            except OSError as problem:
                raise AnsibleActionFail(
                    f"{arguments['directory']}: no certificate for {name} can be made: {problem}. Nothing was changed."
                ) from problem
        result.update(
            changed=changed,
            authority=str(authority.path("ca", "crt")),
            certificate=str(authority.path(name, "crt")),
            key=str(authority.path(name, "key")),
        )
        return result
