"""Keep what a benchmark measured, compare it with the last time, show it in report.html; all on the control node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.blackwell.serving.plugins.module_utils import benchmark_results
from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files, plan_files


class ActionModule(ActionBase):
    """``blackwell.serving.benchmark_report``: see plugins/modules/benchmark_report.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "date": {"type": "str", "required": True},
                "facts": {"type": "dict", "required": True},
                "plan": {"type": "dict", "required": True},
                "generator": {"type": "dict", "required": True},
                "runs": {"type": "list", "elements": "dict", "required": True},
                "results_dir": {"type": "path", "required": True},
                "output_dir": {"type": "path", "required": True},
            }
        )
        now = benchmark_results.record(
            host, *(arguments[key] for key in ("date", "facts", "plan", "generator", "runs"))
        )
        results, build = Path(arguments["results_dir"]) / host, Path(arguments["output_dir"]) / host
        before = benchmark_files.last_record(results)
        path = results / benchmark_files.record_name(arguments["date"])
        if not self._task.check_mode:
            try:
                benchmark_files.write_json(path, now)
                _show(build, arguments["plan"], {"measured": now, "before": before})
            except OSError as problem:
                raise AnsibleActionFail(f"cannot write {problem.filename}: {problem.strerror}") from problem
        result.update(
            changed=True,
            path=str(path),
            report=str(build / "report.html"),
            text=benchmark_results.text(now, before),
            unlike=benchmark_results.unlike(now, before),
            compared_with=before["date"] if before else "",
        )
        return result


def _show(directory: Path, deployed: dict[str, Any], benchmark: dict[str, Any]) -> None:
    """report.html again, from the plan beside it, or from the one that serves where there is none."""
    benchmark_files.write_json(directory / plan_files.BENCHMARK_FILE, benchmark)
    try:
        plan = json.loads((directory / plan_files.PLAN_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        plan = deployed
    if plan["verdict"] == "fits":
        plan_files.replace_file(directory / "report.html", plan_files.render(plan, benchmark)["report.html"])
