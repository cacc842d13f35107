"""Write what is generated in README files and docs/: the variables of each role, and the example plans.

`make docs` runs it; tests compare.
"""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host  # noqa: E402
from ansible_collections.blackwell.serving.plugins.module_utils.plan_text import plan_text  # noqa: E402
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog  # noqa: E402

ROLES = (
    "serving",
    "gpu_host",
    "nvidia_driver",
    "cuda_toolkit",
    "docker_engine",
    "nvidia_container_toolkit",
    "engine_image",
    "serving_stack",
    "gateway",
    "monitoring",
    "host_verification",
)
VARIABLES_BEGIN = "<!-- written by tests/tools/readmes.py from meta/argument_specs.yml -->"
REFUSAL_PAGE = "docs/does_not_fit.md"
REFUSAL_BEGIN = "<!-- written by tests/tools/readmes.py from the services above -->\n```text"
PLAN_PAGES = ("README.md", "docs/memory_law.md")
PLAN_BEGIN = "<!-- written by tests/tools/readmes.py from inventory/local -->\n```text"


def _markdown(text: str) -> str:
    """Ansible's markup `C(x)` and `V(x)` as Markdown code."""
    return re.sub(r"\b[CV]\(([^()]*)\)", r"`\1`", " ".join(text.split()))


def _default(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def variables_section(specification: dict[str, Any]) -> str:
    """The Markdown for the options of the role's entry point `main`."""
    lines = []
    for name, option in specification["argument_specs"]["main"]["options"].items():
        default = f"default `{_default(option['default'])}`" if "default" in option else "required"
        choices = "".join(f", `{choice}`" for choice in option.get("choices", [])).replace(",", "; one of", 1)
        lines += ["", f"### `{name}`", "", f"{default}{choices}", ""]
        lines += [f"- {_markdown(paragraph)}" for paragraph in option["description"]]
    return "\n".join(lines)


VARIABLES_PAGE = """\
# Which variables are there?

Every variable of every role, in the order in which `site.yml` uses the roles; each role's page says more. A variable
`serving_*` that no role knows is refused. This page is written by `tests/tools/readmes.py`.
"""


def variables_page(specifications: dict[str, dict[str, Any]]) -> str:
    """docs/variables.md: one table per role, by the role's name in the order given."""
    parts = [VARIABLES_PAGE]
    for role, specification in specifications.items():
        main = specification["argument_specs"]["main"]
        parts.append(f"\n## {role}\n\n{main['short_description']}. [More](../roles/{role}/README.md)\n")
        if options := main.get("options"):
            parts.append("\n| variable | default | what it is |\n|---|---|---|\n")
        for name, option in (options or {}).items():
            default = f"`{_default(option['default'])}`" if "default" in option else "required"
            said = _first_sentence(_markdown(option["description"][0]))
            parts.append(f"| `{name}` | {_cell(default)} | {_cell(said)} |\n")
    return "".join(parts)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z`)])\. (?=[A-Z`])", text, maxsplit=1)[0].rstrip(".")


def _cell(text: str) -> str:
    """Text for a cell of a table: one line."""
    return " ".join(text.replace("|", "\\|").split())


def role_specifications(root: Path) -> dict[str, dict[str, Any]]:
    """Each role's meta/argument_specs.yml, in the order of ROLES; roles that it does not name come last."""
    found = {path.parents[1].name: path for path in root.glob("roles/*/meta/argument_specs.yml")}
    names = [role for role in ROLES if role in found] + sorted(set(found) - set(ROLES))
    return {name: yaml.safe_load(found[name].read_text("utf-8")) for name in names}


def between_markers(readme: str, begin: str, end: str, content: str) -> str:
    """`readme` with `content` between its lines `begin` and `end`; raises ValueError where one is missing."""
    before, found_begin, rest = readme.partition(f"{begin}\n")
    _, found_end, after = rest.partition(f"{end}\n")
    if not (found_begin and found_end):
        raise ValueError(f"no lines '{begin}' and '{end}'")
    return f"{before}{begin}\n{content}{end}\n{after}"


def with_variables(readme: str, specification: dict[str, Any]) -> str:
    """A role's README.md with its variables as the specification has them."""
    return between_markers(readme, VARIABLES_BEGIN, "<!-- end -->", f"{variables_section(specification)}\n\n")


def with_plan(readme: str, plan_text: str) -> str:
    """A page with `plan_text` as the example of what `make site` prints."""
    return between_markers(readme, PLAN_BEGIN, "```", plan_text)


def with_refusal(page: str) -> str:
    """docs/does_not_fit.md with what the planner says of the services that it declares."""
    services = re.search(r"```yaml\n(serving_services:.*?)```", page, re.DOTALL)
    return between_markers(page, REFUSAL_BEGIN, "```", _plan_text(yaml.safe_load(services[1])))


def example_plan() -> str:
    """plan.txt of inventory/local."""
    return _plan_text(yaml.safe_load((ROOT / "inventory/local/group_vars/all/main.yml").read_text("utf-8")))


def _plan_text(declared: dict[str, Any]) -> str:
    planned = {"gpus": declared.get("serving_gpus", ["rtx_5090"]), "services": declared["serving_services"]}
    return plan_text(plan_host("rtx5090", planned, load_catalog()))


def _rewrite(readme: Path, change: Callable[[str], str]) -> None:
    readme.write_text(change(readme.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    specs = role_specifications(ROOT)
    for role, spec in specs.items():
        _rewrite(ROOT / "roles" / role / "README.md", functools.partial(with_variables, specification=spec))
    (ROOT / "docs/variables.md").write_text(variables_page(specs), "utf-8")
    plan = example_plan()
    for page in PLAN_PAGES:
        _rewrite(ROOT / page, functools.partial(with_plan, plan_text=plan))
    _rewrite(ROOT / REFUSAL_PAGE, with_refusal)
