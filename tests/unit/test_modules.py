"""What all modules that run on hosts have in common: documentation that is true, and Python that the hosts have."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import yaml

MODULES = sorted((Path(__file__).resolve().parents[2] / "plugins/modules").glob("*.py"))
ON_HOSTS = [path for path in MODULES if "AnsibleModule(" in path.read_text("utf-8")]
PACKAGE = "ansible_collections.blackwell.serving.plugins.modules"


class SpecificationSeen(Exception):
    pass


def specification_of(module, monkeypatch) -> dict:
    """The argument specification that the module's main() hands to AnsibleModule."""

    class Spy:
        def __init__(self, argument_spec, **_):
            raise SpecificationSeen(argument_spec)

    monkeypatch.setattr(module, "AnsibleModule", Spy)
    with pytest.raises(SpecificationSeen) as seen:
        module.main()
    return seen.value.args[0]


def described(options: dict) -> dict:
    """What documentation and specification both say of options."""
    shown = {}
    for name, option in (options or {}).items():
        kind = option.get("type", "str")
        shown[name] = {
            "type": kind,
            "elements": option.get("elements"),
            "required": option.get("required", False),
            "default": option.get("default"),
            "choices": option.get("choices"),
            "options": described(option.get("suboptions") or option.get("options")),
        }
    return shown


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.stem)
def test_documentation_and_specification_agree(path: Path, monkeypatch):
    module = importlib.import_module(f"{PACKAGE}.{path.stem}")
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == path.stem
    assert described(documentation.get("options")) == described(specification_of(module, monkeypatch))


def test_ansible_doc_shows_each_module_with_what_check_mode_does(run_tool):
    shown = run_tool("ansible-doc", "--json", *(f"blackwell.serving.{path.stem}" for path in ON_HOSTS))
    assert shown.returncode == 0, shown.stderr
    documented = json.loads(shown.stdout)
    assert len(documented) == len(ON_HOSTS)
    for name, module in documented.items():
        attributes = module["doc"]["attributes"]
        for mode in ("check_mode", "diff_mode"):
            assert attributes[mode]["support"] in ("full", "none"), name
            assert attributes[mode]["description"], name


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.stem)
def test_modules_need_no_newer_python_than_the_oldest_host_has(path: Path):
    """Ubuntu 22.04 has Python 3.10."""
    ast.parse(path.read_text("utf-8"), feature_version=(3, 10))
