"""The lab's own tools: packages that dpkg accepts, repositories that apt trusts, the judgement of three runs."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[2] / "molecule/lab"


@pytest.fixture
def deb(monkeypatch):
    """The lab's package writer."""
    monkeypatch.syspath_prepend(LAB)
    return importlib.import_module("mirror.deb")


@pytest.fixture
def dpkg_deb() -> str:
    return shutil.which("dpkg-deb") or pytest.skip("no dpkg-deb on this machine")


def make_package(deb, **files):
    fields = {"Depends": "libc6"}
    content = {"/usr/bin/tool": "#!/bin/sh\n", "/etc/tool.conf": "a\n", "/usr/lib/tool": deb.Link("/usr/bin/tool")}
    return deb.Package(
        "tool", "1:2.0-1", "stand-in", fields=fields, files=content | files, scripts={"postinst": "true"}
    )


def test_dpkg_reads_a_package_as_it_was_meant(deb, dpkg_deb, tmp_path):
    path = tmp_path / "tool.deb"
    path.write_bytes(make_package(deb).to_bytes())
    fields = subprocess.run([dpkg_deb, "--field", path], capture_output=True, text=True, check=True).stdout
    assert "Package: tool\nVersion: 1:2.0-1\n" in fields
    assert "Depends: libc6\n" in fields
    subprocess.run([dpkg_deb, "--raw-extract", path, tmp_path / "root"], check=True)
    assert (tmp_path / "root/usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "root/etc/tool.conf").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "root/usr/lib/tool").is_symlink()
    assert (tmp_path / "root/DEBIAN/conffiles").read_text() == "/etc/tool.conf\n"


def test_the_same_package_has_the_same_bytes(deb):
    assert make_package(deb).to_bytes() == make_package(deb).to_bytes()


def apt_update(repository: Path, key: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """`apt-get update` from that repository alone, with a state of its own."""
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (state / name).mkdir(parents=True)
    (state / "parts/test.list").write_text(f"deb [signed-by={key}] file:{repository} /\n")
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": state / "parts",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
    }
    words = [f"-o{name}={value}" for name, value in options.items()]
    return subprocess.run(["apt-get", *words, "update"], capture_output=True, text=True, check=False)


def test_apt_trusts_a_repository_with_its_key_and_no_other(deb, tmp_path):
    if not (shutil.which("apt-get") and shutil.which("gpg")):
        pytest.skip("no apt-get or gpg on this machine")
    right, wrong = (deb.Key(tmp_path / name, f"Test {name}") for name in ("right", "wrong"))
    try:
        deb.write_flat(tmp_path / "repository", [make_package(deb)], right, Origin="Test")
        for name, key in (("right", right), ("wrong", wrong)):
            (tmp_path / f"{name}.asc").write_bytes(key.public)
    finally:
        right.close()
        wrong.close()
    trusted = apt_update(tmp_path / "repository", tmp_path / "right.asc", tmp_path / "state1")
    assert trusted.returncode == 0, trusted.stderr
    refused = apt_update(tmp_path / "repository", tmp_path / "wrong.asc", tmp_path / "state2")
    assert "NO_PUBKEY" in refused.stdout + refused.stderr


def action(run: str, task: str, changed: bool = True, check: bool = False) -> dict:
    entry = {"run": run, "playbook": "converge.yml", "check": check, "host": "box", "role": "r", "task": task}
    return entry | {"item": None, "action": "copy", "changed": changed, "failed": False}


PREDICTED = [action("1", "write", check=True), action("1", "start", check=True)]
MADE = [action("2", "write"), action("2", "start")]
QUIET = [action("3", "write", changed=False), action("3", "start", changed=False)]


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        pytest.param([*PREDICTED, *MADE, *QUIET], None, id="as predicted, then nothing"),
        pytest.param([PREDICTED[0], *MADE, *QUIET], "--check did not say so: ('r', 'start', None)", id="not predicted"),
        pytest.param([*PREDICTED, MADE[0], *QUIET], "but it did not change: ('r', 'start', None)", id="not made"),
        pytest.param([*PREDICTED, *MADE, action("3", "start")], "the last run changed", id="changes again"),
        pytest.param([*PREDICTED, *MADE, *QUIET * 13], "took 26 actions", id="too many actions"),
        pytest.param([*MADE, *QUIET], "no run with --check", id="never checked"),
    ],
)
def test_three_runs_are_judged(actions, complaint, run_tool, tmp_path):
    log = tmp_path / "actions.jsonl"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in actions))
    done = run_tool("python", LAB / "judge_runs.py", log, "box")
    assert done.returncode == (1 if complaint else 0), done.stderr
    assert (complaint or "") in done.stderr


def test_limits_are_lowered_to_what_the_host_may_set(tmp_path):
    """As runc gets them: of a container that is created, of a command that is executed in one."""
    endless = [{"type": "RLIMIT_MEMLOCK", "soft": 2**64 - 1, "hard": 2**64 - 1}]
    program = LAB / "image/rootfs/usr/local/lib/lab/lower_limits"
    (tmp_path / "config.json").write_text(json.dumps({"process": {"rlimits": endless}}))
    (tmp_path / "process.json").write_text(json.dumps({"rlimits": endless}))
    for words in (["create", "--bundle", tmp_path, "id"], ["exec", "--process", tmp_path / "process.json", "id"]):
        command = ["prlimit", "--memlock=65536:65536", sys.executable, program, "--root", tmp_path, *words]
        subprocess.run(command, check=True)
    lowered = [{"type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 65536}]
    assert json.loads((tmp_path / "config.json").read_text())["process"]["rlimits"] == lowered
    assert json.loads((tmp_path / "process.json").read_text())["rlimits"] == lowered
