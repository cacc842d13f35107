"""Fixtures shared by all tests: the repository, Ansible's command line and a real Docker Compose."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
COLLECTIONS = REPO_ROOT / ".collections"

sys.path.insert(0, str(COLLECTIONS))

Playbook = Callable[..., subprocess.CompletedProcess[str]]


def _environment() -> dict[str, str]:
    """This process's environment with the tools of the running interpreter first on PATH and no ANSIBLE_* setting."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    tools = str(Path(sys.executable).parent)
    return kept | {"PATH": f"{tools}{os.pathsep}{kept.get('PATH', os.defpath)}", "ANSIBLE_NOCOLOR": "true"}


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def tool_environment() -> dict[str, str]:
    """Environment in which the commands of this virtual environment are found, free of the caller's ANSIBLE_*."""
    return _environment()


@pytest.fixture(scope="session")
def ansible_playbook() -> Playbook:
    """Run `ansible-playbook` with the given arguments and return the finished process, whatever its exit status.

    `cwd` is the repository unless given; `env` is added to the environment; a run longer than `timeout` seconds fails.
    """

    def run(*arguments: str | Path, cwd: Path = REPO_ROOT, env: dict[str, str] | None = None, timeout: float = 120):
        return subprocess.run(
            ["ansible-playbook", *map(str, arguments)],
            cwd=cwd,
            env=_environment() | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def _skip_or_fail(reason: str) -> None:
    """Skip the test where the machine lacks something; in CI nothing may be lacking."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have it: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def docker_compose() -> list[str]:
    """Command line of a real Compose v2 (`config` needs no Docker engine)."""
    candidates = [["docker", "compose"], ["docker-compose"], ["/usr/libexec/docker/cli-plugins/docker-compose"]]
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        answer = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip().lstrip("v").startswith(tuple("23456789")):
            return command
    return _skip_or_fail("no Docker Compose v2 on this machine")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium-like browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return _skip_or_fail("no Chromium on this machine")
