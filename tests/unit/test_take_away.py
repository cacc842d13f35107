"""What was put on a host goes again: files on a real file system; dpkg, apt and Docker are stand-ins."""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.put_there import Record

OWN = {"owner": str(os.getuid()), "group": str(os.getgid())}
DIGEST = "sha256:" + "1" * 64
STAND_IN = '''#!{python}
"""Says what the test wants of a command line, and notes it."""
import json, pathlib, sys

words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
answers = json.loads(pathlib.Path({answers!r}).read_text())
with open({log!r}, "a") as log:
    log.write(" ".join(words) + "\\n")
line = " ".join(words)
sys.stdout.write(next((text for beginning, text in answers.items() if line.startswith(beginning)), ""))
'''


@pytest.fixture
def host(tmp_path: Path, run_module):
    """`host.write(...)` is managed_files, `host.take(...)` take_away; `host.answers` is what commands say."""

    class Host:
        record = tmp_path / "put_there.json"
        answers: ClassVar[dict] = {}

        def write(self, *files):
            return run_module("managed_files", files=[{**OWN, **file} for file in files])

        def take(self, part="provisioning", check=False, **more):
            (tmp_path / "answers.json").write_text(json.dumps(self.answers))
            path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
            more.update({"part": part} if part else {}, record=str(self.record))
            return run_module("take_away", check=check, environment=path, **more)

        def ran(self, beginning):
            log = tmp_path / "log"
            return [line for line in log.read_text().splitlines() if line.startswith(beginning)] if log.exists() else []

        def packages(self, **names):
            """What was remembered: `installed`, `held`, `removed`."""
            record = Record(str(self.record))
            record.package_changes(**{"installed": [], "held": [], "removed": [], **names})
            record.save()

    (tmp_path / "bin").mkdir()
    for name in ("docker", "dpkg-query", "apt-get", "apt-mark", "systemctl", "update-initramfs"):
        program = tmp_path / "bin" / name
        program.write_text(
            STAND_IN.format(python=sys.executable, answers=str(tmp_path / "answers.json"), log=str(tmp_path / "log"))
        )
        program.chmod(0o755)
    return Host()


def test_files_are_as_they_were_and_what_somebody_changed_stays(host, tmp_path: Path):
    new, replaced, surplus, edited = (tmp_path / name for name in ("new", "replaced", "surplus", "edited"))
    replaced.write_text("older\n")
    replaced.chmod(0o600)
    surplus.write_text("of others\n")
    host.write(
        {"path": str(new), "content": "ours\n"},
        {"path": str(replaced), "content": "ours\n"},
        {"path": str(surplus), "state": "absent"},
        {"path": str(edited), "content": "ours\n"},
    )
    host.write({"path": str(replaced), "content": "ours, later\n"})
    edited.write_text("theirs\n")

    foretold = host.take(check=True)
    assert new.exists()
    assert not surplus.exists()
    done = host.take()
    assert done["removed"] == foretold["removed"]
    assert not new.exists()
    assert (replaced.read_text(), replaced.stat().st_mode & 0o777) == ("older\n", 0o600)
    assert surplus.read_text() == "of others\n"
    assert edited.read_text() == "theirs\n"
    assert done["kept"] == [f"file {edited}: somebody changed it since"]

    again = host.take()
    assert (again["changed"], again["removed"], again["kept"]) == (False, [], [])


def test_each_part_goes_by_itself(host, tmp_path: Path, run_module):
    mine, other = tmp_path / "mine", tmp_path / "other"
    host.write({"path": str(other), "content": "x"})
    run_module("managed_files", part="services", files=[{**OWN, "path": str(mine), "content": "x"}])
    assert host.take("services")["removed"] == [f"file {mine}"]
    assert other.exists()
    assert host.take("provisioning")["removed"] == [f"file {other}"]


def test_a_file_that_had_been_written_already_is_nobodys_to_take(host, tmp_path: Path):
    there = tmp_path / "there"
    there.write_text("as it is\n")
    there.chmod(0o644)
    host.write({"path": str(there), "content": "as it is\n"})
    assert host.take()["removed"] == []
    assert there.exists()


def test_packages_go_that_were_not_there_and_holds_that_were_not_there(host):
    host.packages(installed=["driver", "library", "gone-since"], held=["driver", "docker.io"], removed=["closed"])
    host.answers = {
        "dpkg-query --show": "driver hold installed\nlibrary install installed\n"
        "docker.io hold installed\nother install installed\n",
        "dpkg-query --listfiles driver library": "/usr/lib/systemd/system/driver.service\n/usr/bin/driver\n"
        "/lib/systemd/system/rare.timer\n/usr/lib/systemd/system/many@.service\n",
        "systemctl list-unit-files --no-legend --state=enabled driver.service rare.timer": "driver.service enabled\n",
        "apt-get --simulate": "Purg driver [1]\nPurg library [1]\n",
    }
    done = host.take()
    assert done["removed"] == ["stop driver.service", "hold on docker.io", "package driver", "package library"]
    log = host.ran("")
    disabled = log.index("systemctl disable --now driver.service")
    assert disabled < next(number for number, line in enumerate(log) if line.startswith("apt-get -o"))
    assert done["gone"] == ["closed"]
    assert host.ran("apt-mark unhold") == ["apt-mark unhold docker.io driver"]
    (purge,) = host.ran("apt-get -o")
    assert purge.split()[-2:] == ["driver", "library"]


def test_a_transaction_that_would_take_more_is_refused(host, tmp_path: Path):
    new = tmp_path / "new"
    host.write({"path": str(new), "content": "ours\n"})
    host.packages(installed=["docker-ce"])
    host.answers = {
        "dpkg-query": "docker-ce install installed\nfleet-agent install installed\n",
        "apt-get --simulate": "Remv fleet-agent [1]\nPurg docker-ce [1]\n",
    }
    refused = host.take()
    assert refused["failed"]
    assert "fleet-agent" in refused["msg"]
    assert "docker-ce" not in refused["msg"]
    assert not host.ran("apt-get -o")
    assert not host.ran("apt-mark")
    assert new.exists()


def test_volumes_and_images_go_with_consent_alone(host, tmp_path: Path):
    release = tmp_path / "stack/releases/20261125T000000Z"
    release.mkdir(parents=True)
    (release / "plan.json").write_text(json.dumps({"services": [{"image": "engine:1"}]}))
    host.answers = {
        "docker ps --all --filter label=com.docker.compose.project=serving": "qwen\n",
        "docker ps --all --filter ancestor=engine:1": "qwen\n",
        "docker volume ls": "serving_cache\n",
        "docker image inspect": "sha256:1\n",
    }
    options = {"projects": ["serving"], "directories": [str(tmp_path / "stack")]}
    kept = host.take("services", check=True, **options)
    assert kept["removed"] == ["container qwen", f"directory {tmp_path / 'stack'}"]
    assert [line.split(":")[0] for line in kept["kept"]] == ["volume serving_cache", "image engine"]
    assert not host.ran("docker rm")
    done = host.take("services", data=True, **options)
    assert done["removed"] == [
        "container qwen",
        "volume serving_cache",
        "image engine:1",
        f"directory {tmp_path / 'stack'}",
    ]
    assert done["kept"] == []
    assert not (tmp_path / "stack").exists()


def test_an_image_goes_with_the_tag_that_it_was_pulled_by_and_tags_of_others_stay(host, tmp_path: Path):
    release = tmp_path / "stack/releases/1"
    release.mkdir(parents=True)
    image = f"lmsysorg/sglang:v0.5@{DIGEST}"
    (release / "plan.json").write_text(json.dumps({"services": [{"image": image}, {"image": image}]}))
    host.answers = {"docker image inspect": "sha256:2 lmsysorg/sglang:v0.5 mine/sglang:v0.5\n"}
    done = host.take("services", data=True, directories=[str(tmp_path / "stack")])
    assert done["removed"][:-1] == [f"image {image}", "image lmsysorg/sglang:v0.5"]
    assert host.ran("docker rmi") == [f"docker rmi {image}", "docker rmi lmsysorg/sglang:v0.5"]


def test_an_image_that_others_use_stays(host, tmp_path: Path):
    release = tmp_path / "stack/releases/1"
    release.mkdir(parents=True)
    (release / "plan.json").write_text(json.dumps({"services": [{"image": "engine:1"}]}))
    host.answers = {"docker ps --all --filter ancestor=engine:1": "theirs\n", "docker image inspect": "sha256:1\n"}
    done = host.take("services", data=True, directories=[str(tmp_path / "stack")])
    assert done["kept"] == ["image engine:1: theirs uses it"]
    assert not host.ran("docker rmi")


def test_an_image_that_stayed_goes_in_a_later_run_with_consent(host, tmp_path: Path):
    release = tmp_path / "stack/releases/1"
    release.mkdir(parents=True)
    (release / "plan.json").write_text(json.dumps({"services": [{"image": "engine:1"}]}))
    host.answers = {"docker image inspect": "sha256:1\n"}
    options = {"directories": [str(tmp_path / "stack")]}
    assert len(host.take("services", **options)["kept"]) == 1
    assert not (tmp_path / "stack").exists()
    assert host.take("services", **options)["kept"] == []
    assert host.take("services", check=True, data=True, **options)["removed"] == ["image engine:1"]
    assert host.take("services", data=True, **options)["removed"] == ["image engine:1"]
    assert host.take("services", data=True, **options)["changed"] is False


def test_a_project_goes_alone_and_what_was_recorded_stays(host, tmp_path: Path):
    directory, unit = tmp_path / "gateway", tmp_path / "unit"
    directory.mkdir()
    (directory / "compose.yaml").write_text("services:\n  nginx:\n    image: nginx:1.30\n")
    (directory / "compose.override.yaml").write_text(f"services:\n  nginx:\n    image: nginx@{DIGEST}\n    labels:\n")
    host.write({"path": str(unit), "content": "ours\n"})
    host.answers = {
        "docker ps --all --filter label=com.docker.compose.project=blackwell-gateway": "nginx\n",
        "docker volume ls --filter label=com.docker.compose.project=blackwell-gateway": "acme\n",
        "docker image inspect": "sha256:1 nginx:1.30 theirs:1\n",
    }
    options = {"part": None, "projects": ["blackwell-gateway"], "directories": [str(directory)]}
    kept = host.take(check=True, **options)
    assert kept["removed"] == ["container nginx", f"directory {directory}"]
    assert len(kept["kept"]) == 3
    done = host.take(data=True, **options)
    assert done["removed"] == [
        "container nginx",
        "volume acme",
        f"image nginx@{DIGEST}",
        "image nginx:1.30",
        f"directory {directory}",
    ]
    assert unit.exists()
    assert host.take("provisioning")["removed"] == [f"file {unit}"]


def test_volumes_of_a_project_whose_containers_are_gone_already_go_with_consent(host):
    host.answers = {"docker volume ls --filter label=com.docker.compose.project=blackwell-monitoring": "prometheus\n"}
    kept = host.take(part=None, projects=["blackwell-monitoring"])
    assert (kept["changed"], kept["kept"]) == (False, ["volume prometheus: data, which was not asked for"])
    assert host.take(part=None, projects=["blackwell-monitoring"], data=True)["removed"] == ["volume prometheus"]


def test_packages_of_others_are_remembered_as_theirs(tmp_path: Path):
    record = Record(str(tmp_path / "record.json"))
    record.package_changes(installed=["driver"], held=["driver"], removed=["closed"])
    record.package_changes(installed=["closed"], held=[], removed=["driver"])
    assert record.packages == {"installed": [], "held": [], "removed": []}
