"""The module with a real venv and pip, and a wheel made here."""

import hashlib
import json
import os
import shutil
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.blackwell.serving.plugins.modules import python_venv

REQUIREMENTS = Path(__file__).parents[2] / "roles/docker_engine/files/python-on-whales.txt"


def make_wheel(directory: Path, version: str) -> str:
    """The line of a requirements file for a new wheel of `lab_thing`."""
    info = f"lab_thing-{version}.dist-info"
    files = {
        "lab_thing.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: lab-thing\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = directory / f"lab_thing-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, content)
    return f"lab-thing=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture
def run(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    def run_module(requirements: str, check: bool = False, **options) -> dict:
        python = os.path.realpath(sys.executable)
        arguments = {"path": str(tmp_path / "opt/venv"), "requirements": requirements, "python": python, **options}
        with patch_module_args(arguments | {"_ansible_check_mode": check}), pytest.raises(SystemExit):
            python_venv.main()
        return json.loads(capsys.readouterr().out)

    return run_module


def test_an_environment_is_made_kept_upgraded_and_repaired(tmp_path: Path, run):
    first, second = make_wheel(tmp_path, "1.0"), make_wheel(tmp_path, "2.0")
    predicted = run(first, check=True)
    assert (predicted["changed"], predicted["created"]) == (True, True)
    assert not (tmp_path / "opt").exists()

    made = run(first)
    assert (made["changed"], made["packages"]) == (True, {"lab-thing": "1.0"})
    assert run(first)["changed"] is False
    assert run(first, check=True)["changed"] is False

    assert run(second, check=True)["changed"] is True
    assert run(second)["packages"] == {"lab-thing": "2.0"}

    next((tmp_path / "opt/venv/lib").glob("python*/site-packages/lab_thing-2.0.dist-info/RECORD")).unlink()
    for entry in (tmp_path / "opt/venv/lib").glob("python*/site-packages/lab_thing*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    repaired = run(second)
    assert (repaired["changed"], repaired["created"]) == (True, False)

    (tmp_path / "opt/venv/bin/python").unlink()
    assert run(second)["created"] is True


def test_a_package_with_another_hash_is_refused(tmp_path: Path, run):
    line = make_wheel(tmp_path, "1.0")
    result = run(line.replace(line[-10:-2], "00000000"))
    assert result["failed"]
    assert "hash" in result["msg"].lower()


@pytest.mark.parametrize("line", ["lab-thing", "lab-thing==1.0", "lab-thing>=1.0 --hash=sha256:" + "0" * 64])
def test_what_is_not_pinned_with_a_hash_is_refused(line: str, run):
    assert "not a pinned package" in run(line)["msg"]


@pytest.fixture
def index(monkeypatch):
    """A package index that has nothing and remembers what it was asked for; pip is set up to use it alone."""
    asked = []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        yield asked
        server.shutdown()


def test_wheels_of_a_directory_are_used_and_no_index_is_asked(tmp_path: Path, run, index):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    line = make_wheel(wheels, "1.0")
    made = run(line, find_links=str(wheels))
    assert (made["changed"], made["packages"]) == (True, {"lab-thing": "1.0"})

    lacking = run(line.replace("1.0", "3.0"), find_links=str(wheels))
    assert "lab-thing==3.0" in lacking["msg"]
    assert (
        "hash"
        in run(make_wheel(wheels, "2.0").replace("sha256:", "sha256:0")[:-2], find_links=str(wheels))["msg"].lower()
    )
    assert not index
    assert run(line.replace("1.0", "3.0"))["failed"]
    assert index  # it would have been asked


def test_the_role_pins_python_on_whales_and_its_dependencies():
    assert {"python-on-whales", "pydantic", "pydantic-core"} <= set(python_venv.pinned(REQUIREMENTS.read_text()))
