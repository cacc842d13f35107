"""Write what is generated in README files: the variables of each role, and the example plan of the main one.

`make docs` runs it; tests compare.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

VARIABLES_BEGIN = "<!-- written by tests/tools/readmes.py from meta/argument_specs.yml -->"
PLAN_BEGIN = "<!-- written by tests/tools/readmes.py from build/rtx5090/plan.txt -->\n```text"


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
    """The main README.md with `plan_text` as the example of what `make site` prints."""
    return between_markers(readme, PLAN_BEGIN, "```", plan_text)


def _rewrite(readme: Path, change: Callable[[str], str]) -> None:
    readme.write_text(change(readme.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    for spec_file in root.glob("roles/*/meta/argument_specs.yml"):
        spec = yaml.safe_load(spec_file.read_text("utf-8"))
        _rewrite(spec_file.parents[1] / "README.md", functools.partial(with_variables, specification=spec))
    plan_file = root / "build/rtx5090/plan.txt"
    _rewrite(root / "README.md", functools.partial(with_plan, plan_text=plan_file.read_text("utf-8")))
