"""The files that a plan becomes on the control node: rendered, compared, written."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils import benchmark_results
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import SCHEMA
from ansible_collections.blackwell.serving.plugins.module_utils.plan_report import report_view
from ansible_collections.blackwell.serving.plugins.module_utils.plan_text import plan_text
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT

PLAN_FILE = "plan.json"
RENDERED_FILES = ("compose.yaml", "plan.txt", "report.html")
# What playbooks/benchmark.yml leaves beside the plan, for the report: {measured: a record, before: the one before it}.
BENCHMARK_FILE = "benchmark.json"


def _scalar(value: Any) -> str:
    """A YAML scalar on one line, quoted only where it must be; ``$`` doubled, as Compose wants it."""
    text = yaml.safe_dump(str(value).replace("$", "$$"), width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


@functools.lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(COLLECTION_ROOT / "templates"),
        autoescape=lambda name: bool(name) and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["scalar"] = _scalar
    return environment


def read_ahead() -> None:
    """Compile the templates."""
    for name in ("compose.yaml.j2", "report.html.j2"):
        templates().get_template(name)


def read_benchmark(directory: Path) -> dict[str, Any] | None:
    try:
        return json.loads((directory / BENCHMARK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def render(plan: Mapping[str, Any], benchmark: Mapping[str, Any] | None = None) -> dict[str, str]:
    """File name -> content. A plan that does not fit has only its plan.json."""
    files = {PLAN_FILE: json.dumps(plan, indent=2, ensure_ascii=False) + "\n"}
    if plan["verdict"] == "fits":
        environment = templates()
        files["compose.yaml"] = environment.get_template("compose.yaml.j2").render(plan=plan)
        files["plan.txt"] = plan_text(plan)
        files["report.html"] = environment.get_template("report.html.j2").render(
            plan=plan,
            report=report_view(plan),
            benchmark=benchmark_results.view(benchmark["measured"], benchmark["before"], plan) if benchmark else None,
        )
    return files


def render_index(view: Mapping[str, Any]) -> str:
    """index.html of all hosts."""
    return templates().get_template("index.html.j2").render(index=view)


def read_plan(directory: Path) -> dict[str, Any] | None:
    """plan.json of that directory; None where there is none that can be read."""
    try:
        plan = json.loads((directory / PLAN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return plan if isinstance(plan, dict) and plan.get("schema") == SCHEMA else None


def current_files(directory: Path) -> dict[str, str]:
    """What is there now, of the files that this collection writes."""
    found = {}
    for name in (PLAN_FILE, *RENDERED_FILES):
        try:
            found[name] = (directory / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    return found


def write_files(directory: Path, files: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Write what differs, each file in one step, and remove what no longer belongs there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in before:
        if name not in files:
            (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
        if before.get(name) != content:
            replace_file(directory / name, content)


def replace_file(path: Path, content: str) -> None:
    """Write the file in one step."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
