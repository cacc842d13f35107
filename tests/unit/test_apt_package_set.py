"""The module apt_package_set with a stand-in for dpkg and apt, whose state is a file: what it runs and refuses."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

STAND_IN = '''#!{python}
"""dpkg, dpkg-query, apt-get, apt-cache and apt-mark over {state}: a stand-in that knows what the tests need."""
import json, os, pathlib, sys

file = pathlib.Path({state!r})
state = json.loads(file.read_text())
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
state["log"].append(" ".join([name, *words]))
installed, offered = state["installed"], state["offered"]
plain = [word for i, word in enumerate(words) if not word.startswith("-") and words[i - 1] != "-o"]
output, code = "", 0
if name == "dpkg" and "--print-architecture" in words:
    output = "amd64\\n"
elif name == "dpkg":
    for package in installed.values():
        if package["status"] == "half-configured" and not state.get("cannot_heal"):
            package["status"] = "installed"
elif name == "dpkg-query":
    for each, package in installed.items():
        line = [each, "amd64", package.get("want", "install"), "ok", package["status"], package["version"]]
        output += "\\t".join(line) + "\\n"
elif name == "apt-cache":
    for each in plain[1:]:
        versions = offered.get(each, [])
        if plain[0] == "policy" and versions:
            output += f"{{each}}:\\n  Candidate: {{versions[0]}}\\n"
        elif plain[0] == "madison":
            output += "".join(f"{{each}} | {{version}} | http://mirror ./ Packages\\n" for version in versions)
elif name == "apt-mark":
    for each in plain[1:]:
        installed[each]["want"] = "hold"
elif plain[0] == "update" and state.get("update_fails"):
    output, code = "Err:1 http://mirror ./ InRelease\\nE: Some index files failed to download.\\n", 100
elif plain[0] == "install":
    for word in plain[1:] + state.get("comes_along", []):
        each, _, version = word.partition("=")
        if each.endswith("-"):
            output += f"Purg {{each[:-1]}} [1]\\n"
            if "--simulate" not in words:
                installed.pop(each[:-1], None)
        else:
            output += f"Inst {{each}} ({{version}} NVIDIA [amd64])\\n"
            if "--simulate" not in words and not state.get("does_nothing"):
                installed[each] = {{"status": "installed", "version": version}}
    for each in state.get("goes_along", []):
        output += f"Remv {{each}} [1]\\n"
file.write_text(json.dumps(state))
sys.stdout.write(output)
sys.exit(code)
'''


@pytest.fixture
def host(tmp_path: Path, run_module):
    """`host(**state)` prepares the stand-in; `host.run(**arguments)` runs the module, `host.state()` is what became."""

    class Host:
        file = tmp_path / "state.json"

        def __call__(self, installed=None, offered=None, **more):
            packages = {
                name: {"status": "installed", "version": version} if isinstance(version, str) else version
                for name, version in (installed or {}).items()
            }
            self.file.write_text(json.dumps({"installed": packages, "offered": offered or {}, "log": [], **more}))

        def run(self, **arguments):
            path = f"{tmp_path}/bin:{os.environ['PATH']}"
            return run_module("apt_package_set", environment={"PATH": path}, **arguments)

        def state(self):
            return json.loads(self.file.read_text())

        def transactions(self):
            return [line for line in self.state()["log"] if " install " in line and "--simulate" not in line]

    (tmp_path / "bin").mkdir()
    for name in ("dpkg", "dpkg-query", "apt-get", "apt-cache", "apt-mark"):
        program = tmp_path / "bin" / name
        program.write_text(STAND_IN.format(python=sys.executable, state=str(Host.file)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return Host()


OFFERED = {"driver": ["595.9-1", "580.2-1"], "extra": ["1.0"]}


def test_installs_removes_and_holds_once(host):
    host({"old": "550.1", "extra": "1.0"}, OFFERED)
    arguments = {"packages": [{"name": "driver", "version": "580.*"}, "extra"], "absent": ["ol*"], "hold": True}
    checked = host.run(check=True, **arguments)
    assert checked["changed"]
    assert not host.transactions()
    done = host.run(**arguments)
    assert (done["installed"], done["removed"], done["held"]) == (
        ["driver 580.2-1"],
        ["old 550.1"],
        ["driver", "extra"],
    )
    assert len(host.transactions()) == 1
    again = host.run(**arguments)
    assert (again["changed"], again["versions"]) == (False, {"driver": "580.2-1", "extra": "1.0"})


def test_a_converged_host_needs_neither_lists_nor_network(host):
    host({"driver": "580.2-1"}, {}, update_fails=True)
    assert not host.run(packages=["driver"])["changed"]
    assert not [line for line in host.state()["log"] if "update" in line]


def test_another_branch_is_an_upgrade_of_what_is_held(host):
    host({"driver": {"status": "installed", "version": "580.2-1", "want": "hold"}}, OFFERED)
    done = host.run(packages=[{"name": "driver", "version": "595.*"}], hold=True)
    assert done["upgraded"] == ["driver 580.2-1 -> 595.9-1"]
    assert host.state()["installed"]["driver"]["want"] == "hold"


@pytest.mark.parametrize(
    ("state", "arguments", "message"),
    [
        ({"goes_along": ["postgresql"]}, {}, "also remove postgresql"),
        ({"comes_along": ["cuda-drivers=1"]}, {"must_not_install": ["cuda-d*"]}, "also install cuda-drivers"),
    ],
)
def test_side_effects_that_no_one_asked_for_are_refused_before_anything_happens(host, state, arguments, message):
    host({"postgresql": "15"}, OFFERED, **state)
    assert message in host.run(packages=["driver"], **arguments)["msg"]
    assert not host.transactions()


def test_side_effects_that_are_allowed_happen(host):
    host({"libcuda1": "550"}, OFFERED, goes_along=["libcuda1"])
    assert host.run(packages=["driver"], may_remove=["libcuda*"])["changed"]


def test_apts_word_is_not_taken_for_it(host):
    host({}, OFFERED, does_nothing=True)
    assert "dpkg does not have: driver" in host.run(packages=["driver"])["msg"]


def test_a_version_that_no_source_offers_is_named_with_those_that_are(host):
    host({}, OFFERED, update_fails=True)
    message = host.run(packages=[{"name": "driver", "version": "610.*"}, "unknown"])["msg"]
    for part in ("driver 610.* (offered: 595.9-1, 580.2-1)", "unknown (offered: none)", "Some index files failed"):
        assert part in message
    assert not host.transactions()


def test_a_broken_source_does_not_matter_where_all_is_known(host):
    host({}, OFFERED, update_fails=True)
    assert host.run(packages=["driver"])["installed"] == ["driver 595.9-1"]


def test_an_interrupted_dpkg_is_finished_first_and_said(host):
    half = {"status": "half-configured", "version": "580.2-1"}
    host({"driver": half}, {})
    assert host.run(check=True, packages=["driver"])["healed"] == ["driver"]
    done = host.run(packages=["driver"])
    assert (done["changed"], done["healed"]) == (True, ["driver"])
    assert not host.run(packages=["driver"])["changed"]


def test_what_cannot_be_healed_is_an_error(host):
    host({"driver": {"status": "half-configured", "version": "580.2-1"}}, OFFERED, cannot_heal=True, does_nothing=True)
    assert "Finishing driver" in host.run(packages=["driver"])["msg"]
