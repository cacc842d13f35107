"""Write the variables of each role in its README.md, from meta/argument_specs.yml.

Run it after a change of a specification: `python tests/tools/role_readme.py`. A test compares the two.
"""

import re
from pathlib import Path
from typing import Any

import yaml

BEGIN = "<!-- written by tests/tools/role_readme.py from meta/argument_specs.yml -->"
END = "<!-- end -->"


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


def updated(readme: str, specification: dict[str, Any]) -> str:
    """`readme` with the section between its two markers made anew; raises ValueError where a marker is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no lines '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{variables_section(specification)}\n\n{END}{after}"


if __name__ == "__main__":
    for spec_file in Path(__file__).resolve().parents[2].glob("roles/*/meta/argument_specs.yml"):
        readme_file = spec_file.parents[1] / "README.md"
        text = updated(readme_file.read_text("utf-8"), yaml.safe_load(spec_file.read_text("utf-8")))
        readme_file.write_text(text, "utf-8")
