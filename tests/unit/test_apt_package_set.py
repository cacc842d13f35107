"""The module apt_package_set with a stand-in for dpkg and apt, whose state is a file: what it runs and refuses."""

import glob
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.blackwell.serving.plugins.modules import apt_package_set

STAND_IN = '''#!{python}
"""dpkg, dpkg-query, apt-*, dkms and modinfo over {state}: a stand-in that knows what the tests need."""
import json, os, pathlib, sys

file = pathlib.Path({state!r})
state = json.loads(file.read_text())
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
state["log"].append(" ".join([name, *words]))
installed, offered = state["installed"], state["offered"]
plain = [word for i, word in enumerate(words) if not word.startswith("-") and words[i - 1] != "-o"]
output, code = "", 0
parts = [word.partition("=")[2] for word in words if word.startswith("Dir::Etc::SourceParts=")]
if name.startswith(("apt-get", "apt-cache")):
    seen = [sorted(path.name for path in pathlib.Path(part).iterdir()) for part in parts]
    state.setdefault("sources", []).append(seen[0] if "Dir::Etc::SourceList=/dev/null" in words else None)
if name == "dpkg" and "--print-architecture" in words:
    output = "amd64\\n"
elif name == "modinfo":
    output = state.get("modules", {{}}).get(plain[-1], "")
elif name == "dkms" and plain[0] == "status":
    output = state.get("dkms_status", "")
elif name == "dkms" and "cannot_build" not in state:
    if plain[0] == "install" or not state.get("dkms_status"):
        state.setdefault("modules", {{}})["nvidia"] = "595.9"
elif name == "dkms":
    output, code = state["cannot_build"], 11
elif name == "dpkg" and "--purge" in words:
    for each in plain:
        installed.pop(each, None)
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
            state.setdefault("goes_along", []).append(each[:-1])
        else:
            output += f"Inst {{each}} ({{version}} NVIDIA [amd64])\\n"
            if "--simulate" not in words and not state.get("does_nothing"):
                installed[each] = {{"status": "installed", "version": version}}
    for each in state.get("goes_along", []):
        output += f"Remv {{each}} [1]\\n"
        if "--simulate" not in words and each in installed:
            installed[each]["status"] = "config-files"
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
    for name in ("dpkg", "dpkg-query", "apt-get", "apt-cache", "apt-mark", "dkms", "modinfo"):
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


def test_what_is_let_go_keeps_its_configuration_and_what_must_go_loses_it(host):
    host({"libcuda1": "550", "old": "550"}, OFFERED, goes_along=["libcuda1"])
    done = host.run(packages=["driver"], may_remove=["libcuda*"], absent=["old"])
    assert (done["removed"], done["purged"]) == (["libcuda1 550", "old 550"], ["old"])
    assert host.state()["installed"].keys() == {"driver", "libcuda1"}
    assert host.state()["installed"]["libcuda1"]["status"] == "config-files"
    assert not host.run(packages=["driver"], may_remove=["libcuda*"], absent=["old"])["changed"]


def test_configuration_that_was_left_by_what_must_go_is_deleted(host):
    host({"driver": "595.9-1", "pins": {"status": "config-files", "version": "1"}}, {})
    assert host.run(check=True, packages=["driver"], absent=["pin*"])["purged"] == ["pins"]
    done = host.run(packages=["driver"], absent=["pin*"])
    assert (done["changed"], done["removed"], done["purged"]) == (True, [], ["pins"])
    assert not host.transactions()
    assert not host.run(packages=["driver"], absent=["pin*"])["changed"]


def test_what_somebody_else_holds_is_not_touched(host):
    held = {"status": "installed", "version": "1.0", "want": "hold"}
    host({"libgl1": held}, OFFERED, comes_along=["libgl1=2.0"])
    assert "change libgl1, which somebody holds; nothing was done" in host.run(packages=["driver"])["msg"]
    assert not host.transactions()
    assert host.state()["installed"] == {"libgl1": held}


@pytest.mark.parametrize("ours", ["may_remove", "hold_also"])
def test_a_hold_on_what_belongs_to_the_set_is_no_obstacle(host, ours):
    host({"libgl1": {"status": "installed", "version": "1.0", "want": "hold"}}, OFFERED, comes_along=["libgl1=2.0"])
    assert host.run(packages=["driver"], **{ours: ["libgl*"]})["upgraded"] == ["libgl1 1.0 -> 2.0"]


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


MODULE = {"dkms_modules": [{"name": "nvidia", "package": "driver"}]}
BUILT = {"installed": {"driver": "595.9-1"}, "modules": {"nvidia": "595.9"}}


def test_a_module_that_is_there_is_left_alone(host):
    host(**BUILT)
    assert not host.run(packages=["driver"], **MODULE)["changed"]
    assert not [line for line in host.state()["log"] if line.startswith("dkms")]


@pytest.mark.parametrize("on_disk", [{}, {"nvidia": "580.2"}])
def test_a_module_that_dpkg_believes_in_and_the_kernel_lacks_is_built(host, on_disk):
    host(**BUILT | {"modules": on_disk})
    foretold = host.run(check=True, packages=["driver"], **MODULE)
    assert (foretold["changed"], foretold["built"]) == (True, ["nvidia 595.9"])
    assert "nvidia 595.9 (built by dkms)" in foretold["diff"]["after"]
    assert not [line for line in host.state()["log"] if line.startswith("dkms")]
    done = host.run(packages=["driver"], **MODULE)
    assert (done["changed"], done["built"]) == (True, ["nvidia 595.9"])
    assert not host.run(packages=["driver"], **MODULE)["changed"]


def test_a_module_that_dkms_believes_in_as_well_is_installed_by_force(host):
    host(**BUILT | {"modules": {}}, dkms_status="nvidia/595.9, 6.12, x86_64: installed (WARNING!)\n")
    assert host.run(packages=["driver"], **MODULE)["built"] == ["nvidia 595.9"]
    (forced,) = [line for line in host.state()["log"] if line.startswith("dkms install")]
    assert forced.startswith("dkms install --force -m nvidia -v 595.9 -k ")


def test_a_module_that_cannot_be_built_is_an_error_in_the_words_of_dkms(host):
    words = "Error! Bad return status\nConsult /var/lib/dkms/nvidia/595.9/build/make.log for more information.\n"
    host(**BUILT | {"modules": {}}, dkms_status="nvidia/595.9: added\n", cannot_build=f"Building...\n{words}")
    failed = host.run(packages=["driver"], **MODULE)
    assert failed["failed"]
    assert "no module nvidia 595.9 for the running kernel" in failed["msg"]
    assert words.strip() in failed["msg"]
    assert not [line for line in host.state()["log"] if line.startswith("dkms install")]


def test_a_module_of_a_package_that_is_about_to_change_is_not_foretold(host):
    host(**BUILT | {"installed": {"driver": "580.2-1"}, "modules": {}}, offered=OFFERED)
    foretold = host.run(check=True, packages=["driver=595.*"], **MODULE)
    assert (foretold["upgraded"], foretold["built"]) == (["driver 580.2-1 -> 595.*"], [])


@pytest.fixture
def etc_apt(tmp_path: Path, monkeypatch) -> Path:
    """A directory that the module, in this process, takes for /etc/apt/sources.list.d."""
    directory = tmp_path / "sources.list.d"
    directory.mkdir()
    (tmp_path / "tmp").mkdir()
    real = glob.glob
    monkeypatch.setattr(glob, "glob", lambda pattern: real(pattern.replace("/etc/apt/sources.list.d", str(directory))))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (directory / "bundle.sources").write_text("Types: deb\nURIs: file:/srv/bundle\nSuites: ./\n")
    (directory / "debian.sources").write_text("Types: deb\nURIs: http://deb.example/debian\nSuites: x\n")
    (directory / "mixed.list").write_text("deb file:/srv/bundle ./\ndeb http://deb.example/debian x main\n")
    return directory


@pytest.mark.parametrize(("local", "seen"), [(True, ["bundle.sources"]), (False, None)])
def test_with_local_sources_apt_sees_no_others_and_they_stay(host, etc_apt, tmp_path, capsys, local, seen):
    host({}, OFFERED)
    before = {path.name: path.read_text() for path in etc_apt.iterdir()}
    arguments = {
        "packages": ["driver"],
        "local_sources": local,
        "record": str(tmp_path / "put_there.json"),
        "_ansible_remote_tmp": str(tmp_path / "tmp"),
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        apt_package_set.main()
    assert json.loads(capsys.readouterr().out)["installed"] == ["driver 595.9-1"]
    asked = [line.split()[0] for line in host.state()["log"] if line.startswith(("apt-get", "apt-cache"))]
    assert asked == ["apt-get", "apt-cache", "apt-cache", "apt-get", "apt-get"]
    assert host.state()["sources"] == [seen] * len(asked)
    assert {path.name: path.read_text() for path in etc_apt.iterdir()} == before
