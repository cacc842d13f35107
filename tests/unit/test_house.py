"""The collection as a thing to hold: specifications, packaging, and what may not stand in it."""

import os
import re
from pathlib import Path

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

REPO_ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted((REPO_ROOT / "roles").iterdir())
CONTENT_FOLDERS = ("playbooks", "roles", "molecule")


def load_yaml(path: Path):
    return yaml.safe_load(path.read_text("utf-8"))


def all_tasks(node):
    """Every dictionary in a document of tasks, plays or handlers."""
    if isinstance(node, list):
        for item in node:
            yield from all_tasks(item)
    elif isinstance(node, dict):
        yield node
        for value in node.values():
            yield from all_tasks(value)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_are_those_of_the_specification(role: Path):
    options = load_yaml(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = {
        name: NativeEnvironment().from_string(value).render() if isinstance(value, str) and "{{" in value else value
        for name, value in load_yaml(role / "defaults/main.yml").items()
    }
    assert defaults == {name: option["default"] for name, option in options.items() if "default" in option}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_readme_is_written_from_the_specification(role: Path, readmes):
    readme = (role / "README.md").read_text("utf-8")
    older = readme != readmes.with_variables(readme, load_yaml(role / "meta/argument_specs.yml"))
    assert not older, "run make docs"


def test_page_of_all_variables_is_written_from_the_specifications(readmes):
    page = readmes.variables_page(readmes.role_specifications(REPO_ROOT))
    assert (REPO_ROOT / "docs/variables.md").read_text("utf-8") == page, "make docs"
    for spec in REPO_ROOT.glob("roles/*/meta/argument_specs.yml"):
        for name in load_yaml(spec)["argument_specs"]["main"].get("options") or {}:
            assert f"| `{name}` |" in page


def test_plans_in_the_documentation_are_those_of_today(readmes):
    plan = readmes.example_plan()
    for page in readmes.PLAN_PAGES:
        text = (REPO_ROOT / page).read_text("utf-8")
        older = text != readmes.with_plan(text, plan)
        assert not older, f"{page}: make docs"
    text = (REPO_ROOT / readmes.REFUSAL_PAGE).read_text("utf-8")
    older = text != readmes.with_refusal(text)
    assert not older, "make docs"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_ansible_doc_shows_the_role(role: Path, run_tool):
    shown = run_tool("ansible-doc", "-t", "role", f"blackwell.serving.{role.name}")
    assert shown.returncode == 0, shown.stderr
    for option in load_yaml(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]:
        assert option in shown.stdout


def test_specification_describes_the_keys_that_the_planner_takes():
    from ansible_collections.blackwell.serving.plugins.module_utils.declaration import (
        PINNED_KEYS,
        REQUIRED,
        SERVICE_KEYS,
    )

    options = load_yaml(REPO_ROOT / "roles/serving/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    paragraphs = options["serving_services"]["description"]
    described = [match for text in paragraphs if (match := re.match(r"C\((\w+)\)( \(required\))?,", text))]
    assert {match[1]: bool(match[2]) for match in described} == {
        key: default is REQUIRED for key, (_, default) in SERVICE_KEYS.items()
    }
    (pinned,) = (text for text in paragraphs if text.startswith("C(pinned)"))
    assert set(re.findall(r"C\((\w+)\)", pinned)) == {"pinned", *PINNED_KEYS}


def test_a_switch_that_the_command_line_turns_off_is_off():
    """`-e name=false` gives the string false, which a condition takes for true; modules convert what they get."""
    options = {
        name
        for role in ROLES
        for name, option in load_yaml(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"].items()
        if option["type"] == "bool"
    }
    converted = r"(?![\w:])(?! \|( default\(\w+\) \|)? bool\b)(?!( \| default\(\w+\))? }}\")"
    found = [
        f"{path.relative_to(REPO_ROOT)}: {line.strip()}"
        for pattern in ("roles/*/tasks/*.yml", "roles/*/vars/*.yml", "playbooks/*.yml")
        for path in REPO_ROOT.glob(pattern)
        for line in path.read_text("utf-8").splitlines()
        for name in options
        if not line.lstrip().startswith("#") and re.search(rf"\b{name}{converted}", line)
    ]
    assert options
    assert not found


def test_no_task_hides_a_failure():
    found = [
        f"{path.relative_to(REPO_ROOT)}: {task.get('name')}"
        for folder in CONTENT_FOLDERS
        for path in (REPO_ROOT / folder).rglob("*.yml")
        for task in all_tasks(load_yaml(path))
        if "ignore_errors" in task or task.get("failed_when") is False
    ]
    assert not found


def test_lint_skips_nothing():
    config = load_yaml(REPO_ROOT / ".ansible-lint")
    assert config["profile"] == "production"
    assert not {"skip_list", "warn_list"} & config.keys()
    assert not (REPO_ROOT / ".ansible-lint-ignore").exists()
    silenced = [
        str(path.relative_to(REPO_ROOT))
        for folder in (*CONTENT_FOLDERS, "inventory", "meta")
        for path in (REPO_ROOT / folder).rglob("*.yml")
        if re.search(r"#\s*(noqa|yamllint)", path.read_text("utf-8"))
    ]
    assert not silenced


def test_tracked_files_name_no_path_of_this_machine(run_tool):
    searched = run_tool("git", "grep", "--untracked", "-nIF", "-e", f"{REPO_ROOT}{os.sep}")
    assert searched.returncode == 1, searched.stdout or searched.stderr


@pytest.mark.parametrize("lock", sorted((REPO_ROOT / "requirements").glob("*.lock")), ids=lambda lock: lock.name)
def test_lock_pins_plain_packages_with_hashes(lock: Path):
    lines = lock.read_text("utf-8").replace("\\\n", "").splitlines()
    requirements = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert requirements
    for requirement in requirements:
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s;]+(\s+--hash=sha256:[0-9a-f]{64})+", requirement.rstrip())


@pytest.mark.parametrize("minor", [11, 12])
def test_test_lock_holds_the_run_lock(minor: int):
    run, test = (
        set(re.findall(r"^[a-z0-9.-]+==\S+", (REPO_ROOT / f"requirements/{kind}-py3{minor}.lock").read_text(), re.M))
        for kind in ("run", "test")
    )
    assert run
    assert run <= test


def test_requirements_install_as_they_stand(tmp_path: Path, run_tool):
    installed = run_tool(
        "ansible-galaxy", "install", "-r", REPO_ROOT / "requirements.yml", cwd=tmp_path, env={"HOME": str(tmp_path)}
    )
    assert installed.returncode == 0, installed.stderr


def test_changelog_has_this_version(run_tool):
    linted = run_tool("antsibull-changelog", "lint")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    version = load_yaml(REPO_ROOT / "galaxy.yml")["version"]
    assert version in load_yaml(REPO_ROOT / "changelogs/changelog.yaml")["releases"]


def test_links_between_pages_lead_somewhere(run_tool):
    pages = run_tool("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md").stdout.splitlines()
    assert "README.md" in pages
    dead = [
        f"{page}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (REPO_ROOT / page).read_text("utf-8"))
        if "://" not in target and not (REPO_ROOT / page).parent.joinpath(target).exists()
    ]
    assert not dead
