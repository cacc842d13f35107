"""What runs on hosts runs under their own Python, from 3.9 on, and loads with nothing but its standard library.

What a function imports for itself (python-on-whales from its environment, an image's huggingface_hub) is left out.
"""

import ast
import fnmatch
import sys
import tomllib
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
MODULE_UTILS = "ansible_collections.blackwell.serving.plugins.module_utils"
NAMES = {path.stem for path in (REPO_ROOT / "plugins/action").glob("*.py")}  # their modules are documentation alone


def outside_functions(node: ast.AST):
    """The nodes that run when the file is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from outside_functions(child)


def imports(path: Path):
    """Dotted names that a file imports, relative ones resolved; of `from a import b` both a and a.b."""
    parent = ".".join(["ansible_collections.blackwell.serving", *path.relative_to(REPO_ROOT).parts[:-1]])
    for node in outside_functions(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(filter(None, [parent.rsplit(".", node.level - 1)[0], node.module]))
                if node.level
                else node.module
            )
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def files_on_hosts():
    """The modules and the module_utils that they import, directly or not."""
    waiting = [path for path in sorted((REPO_ROOT / "plugins/modules").glob("*.py")) if path.stem not in NAMES]
    found: list[Path] = []
    while waiting:
        path = waiting.pop(0)
        found.append(path)
        for name in imports(path):
            if name.startswith(f"{MODULE_UTILS}."):
                file = (
                    (REPO_ROOT / "plugins/module_utils")
                    .joinpath(*name[len(MODULE_UTILS) + 1 :].split("."))
                    .with_suffix(".py")
                )
                if file.exists() and file not in found + waiting:
                    waiting.append(file)
    return found


@pytest.mark.parametrize("path", files_on_hosts(), ids=lambda path: path.stem)
def test_file_runs_on_old_hosts(path):
    ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    foreign = {
        name for name in imports(path) if name.split(".")[0] not in {*sys.stdlib_module_names, "ansible_collections"}
    }
    assert all(name.startswith("ansible.module_utils.") for name in foreign), foreign
    linted_for = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["per-file-target-version"]
    relative = path.relative_to(REPO_ROOT).as_posix()
    versions = {version for pattern, version in linted_for.items() if fnmatch.fnmatch(relative, pattern)}
    assert versions in ({"py38"}, {"py39"}), f"name {relative} in pyproject.toml"
