"""What tests share: the repository, its command lines, a real Docker Compose, a browser, timings."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI") == "true"

sys.path.insert(0, str(REPO_ROOT / ".collections"))

Run = Callable[..., subprocess.CompletedProcess[str]]
Timing = Callable[[str, float, float], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-benchmarks", action="store_true", help="full sizes, and a time over its limit fails")
    parser.addoption(
        "--public-role",
        action="append",
        default=[],
        help="directory of a role to time beside provision.yml (tests/benchmarks/test_hosts.py)",
    )
    parser.addoption("--update-docs", action="store_true", help="rewrite the pages of docs/ that tests make")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """In CI nothing may be lacking: a skipped test fails there."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr[-1]}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the `timing` fixture recorded, also from xdist's workers."""
    passed = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    lines = [value for report in passed for name, value in report.user_properties if name == "timing"]
    if lines:
        terminalreporter.section("timings")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def run_tool() -> Run:
    """Run a command with this virtual environment first on PATH and none of the caller's ANSIBLE_* settings.

    Returns the finished process, whatever its exit status. `cwd` is the repository unless given, `env` is added to the
    environment, and a run longer than `timeout` seconds fails.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "MAKE", "MFLAGS"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])

    def run(*command: str | Path, cwd: Path = REPO_ROOT, env: dict[str, str] | None = None, timeout: float = 120):
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=inherited | {"PATH": path, "NO_COLOR": "1"} | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def ansible_playbook(run_tool: Run) -> Run:
    """`run_tool` for `ansible-playbook`."""

    def run(*arguments: str | Path, **options):
        return run_tool("ansible-playbook", *arguments, **options)

    return run


# Modules that remember on the host what they put there.
RECORDED = {"managed_files", "apt_package_set"}


@pytest.fixture
def run_module(tmp_path: Path, run_tool: Run) -> Callable[..., dict]:
    """Run a module in a process of its own on this machine, with `environment` added; returns its result."""

    def run(name: str, check: bool = False, environment: dict[str, str] | None = None, **arguments) -> dict:
        internal = {"_ansible_check_mode": check, "_ansible_diff": True}
        if name in RECORDED:
            arguments = {"record": str(tmp_path / "put_there.json"), **arguments}
        (tmp_path / "arguments.json").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments | internal}))
        done = run_tool(
            sys.executable,
            "-m",
            f"ansible_collections.blackwell.serving.plugins.modules.{name}",
            tmp_path / "arguments.json",
            env={"PYTHONPATH": str(REPO_ROOT / ".collections"), **(environment or {})},
        )
        assert done.stdout.strip(), done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def catalog():
    """The catalogues as the planner gets them."""
    from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

    return load_catalog()


@pytest.fixture(scope="session")
def readmes():
    """The module tests/tools/readmes.py."""
    spec = importlib.util.spec_from_file_location("readmes", REPO_ROOT / "tests/tools/readmes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_plan(catalog) -> Callable[..., dict]:
    """`make_plan(services, gpus=["rtx_5090"], **declaration)`: the plan of a host, as in plan.json."""
    from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host

    def plan(services, gpus=("rtx_5090",), **declaration):
        gpus = list(gpus) if isinstance(gpus, tuple) else gpus
        return plan_host("host", {"gpus": gpus, "services": services, **declaration}, catalog)

    return plan


@pytest.fixture(scope="session")
def with_remedy() -> Callable[[list[dict], str | None, str], list[dict] | None]:
    """`with_remedy(services, name, remedy)`: the services with what a plan's error offers, applied as it reads.

    None where it changes something else than the services.
    """

    def changed(services, name, remedy):
        key, _, value = remedy.partition(": ")
        value = value.split(" (now ")[0]
        if name is not None:
            new = yaml.safe_load(value)
            return [service | {key: new} if service["name"] == name else service for service in services]
        if remedy.startswith("leave out "):
            return [service for service in services if service["name"] != remedy.removeprefix("leave out ")]
        if key == "context_length":
            limit = int(re.fullmatch(r"at most (\d+) for every service", value)[1])
            return [service | {key: min(service[key], limit)} for service in services]
        if key == "together":
            changes = {one: yaml.safe_load(f"{{{words}}}") for one, words in re.findall(r"(\w+) {(.*?)}", value)}
            left_out = {
                one: {k: None if v == "left out" else v for k, v in new.items()} for one, new in changes.items()
            }
            return [service | left_out.get(service["name"], {}) for service in services]
        return None

    return changed


@pytest.fixture
def fresh_copy(tmp_path: Path, run_tool: Run) -> Path:
    """The files that git tracks, or would track, in a new directory, without any build output."""
    listed = run_tool("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    copy = tmp_path / "copy"
    for name in filter(None, listed.stdout.split("\0")):
        if (source := REPO_ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="session")
def docker_compose() -> list[str]:
    """Command line of a real Compose v2; its `config` needs no Docker engine."""
    for command in (["docker", "compose"], ["docker-compose"], ["/usr/libexec/docker/cli-plugins/docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        answer = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and int(answer.stdout.strip().lstrip("v").split(".")[0]) >= 2:
            return command
    return pytest.skip("no Docker Compose v2 on this machine")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium or of a browser built from it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return pytest.skip("no Chromium on this machine")


@pytest.fixture
def timing(request: pytest.FixtureRequest) -> Timing:
    """Note `seconds` under `what` for the summary; with --full-benchmarks, more than `limit` seconds fail the test."""

    def note(what: str, seconds: float, limit: float) -> None:
        request.node.user_properties.append(("timing", f"{what:<60} {seconds:7.2f} s  (limit {limit:g} s)"))
        if request.config.getoption("--full-benchmarks"):
            assert seconds <= limit, f"{what} took {seconds:.2f} s, more than {limit:g} s"

    return note
