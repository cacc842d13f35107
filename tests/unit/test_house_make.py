"""The make targets: what they say where something is missing."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def python_with(tmp_path: Path):
    """An interpreter like this one in which `statement` is true before the given code runs."""

    def make(statement: str) -> Path:
        script = tmp_path / "python"
        script.write_text(
            f"""#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "import sys; {statement}; $2"\nexit 9\n"""
        )
        script.chmod(0o755)
        return script

    return make


def make_site(run_tool, copy: Path, python: Path | str) -> str:
    """What `make site` says on standard error when it fails before it has made anything."""
    done = run_tool("make", "site", f"PYTHON={python}", cwd=copy)
    assert done.returncode != 0
    assert not (copy / ".venv").exists()
    first, second = done.stderr.splitlines()  # the second line is make's own
    assert "Error" in second
    return first


def test_old_python_is_refused_in_one_line(fresh_copy: Path, run_tool, python_with):
    said = make_site(run_tool, fresh_copy, python_with("sys.version_info = (3, 9, 2)"))
    assert "is Python 3.9, but 3.11 or newer is needed" in said


def test_missing_venv_package_is_named_in_one_line(fresh_copy: Path, run_tool, python_with):
    said = make_site(run_tool, fresh_copy, python_with("sys.modules['ensurepip'] = None"))
    assert "apt install python3-venv" in said


def test_missing_python_is_named_in_one_line(fresh_copy: Path, run_tool):
    assert "'no-such-python' not found" in make_site(run_tool, fresh_copy, "no-such-python")


def test_help_lists_the_targets(run_tool):
    shown = run_tool("make").stdout
    for target in ("site", "test", "clean"):
        assert f"make {target}" in shown
