"""What is worth trying for a service, planned on the control node; the host itself is never contacted."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.action.serving_plan import ARGUMENTS, DECLARED
from ansible_collections.blackwell.serving.plugins.module_utils import tuning
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render

NOT_HERE = ("output_dir",)


class ActionModule(ActionBase):
    """``blackwell.serving.tuning_candidates``: see plugins/modules/tuning_candidates.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        options = {name: option for name, option in ARGUMENTS.items() if name not in NOT_HERE}
        _, arguments = self.validate_argument_spec(
            argument_spec={**options, "service": {"type": "str", "required": True}}
        )
        declaration = {key: arguments[key] for key in DECLARED}
        found = tuning.candidates(host, declaration, load_catalog(), benchmark_files.tuning(), arguments["service"])
        for candidate in found:
            candidate["compose"] = render(candidate["plan"])["compose.yaml"] if candidate["plan"] else ""
        now = plan_host(host, declaration, load_catalog())
        lines = [f"{one['name']}: {one['skipped'] or 'to be tried'}" for one in found]
        result.update(
            changed=False,
            candidates=found,
            plan=now,
            compose=render(now).get("compose.yaml", ""),
            text="\n".join(lines),
        )
        return result
