"""compose_project: what changes, what is read again, and the way back. Docker is made up here.

molecule/monitoring has a real one.
"""

import json
import os

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import compose_project as logic
from ansible_collections.blackwell.serving.plugins.module_utils.compose_project import File, Project, Reload, State
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import DockerProblem
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Releases
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import SPEC_LABEL, spec_digest
from ansible_collections.blackwell.serving.plugins.modules import compose_project as module_file

COMPOSE = "services: {}\n"
DEFINITION = {
    "services": {
        "web": {"image": "web:1", "volumes": ["./web:/etc/web:ro"]},
        "data": {"image": "data:1", "secrets": ["password"]},
    },
    "secrets": {"password": {"file": "./secrets/password"}},
}
FILES = [
    File("web/main.conf", "a"),
    File("web/start.env", "b"),
    File("secrets/password", "hunter2", "0400", secret=True),
]
RELOAD = [Reload("web", ["*.conf"], check=["web", "-t"], signal="HUP")]


def project(files=FILES, definition=DEFINITION, reloads=RELOAD):
    return Project("small", definition, COMPOSE, files, reloads)


class MadeUpDocker:
    """An engine whose containers come up as told. `refuses`: what does not work; `done`: what was asked for."""

    def __init__(self, wanted):
        self.wanted, self.boxes, self.done, self.refuses = wanted, {}, [], set()

    def answers(self):
        return True

    def answers_again(self):
        return True

    def images(self, references):
        return dict.fromkeys(references, "sha256:1")

    def containers(self):
        return list(self.boxes.values())

    def container(self, identity):
        return {"RestartCount": 0}

    def log(self, identity, tail=None):
        return [("now", "no such option")]

    def remove(self, identities):
        self.boxes = {name: box for name, box in self.boxes.items() if box["Id"] not in identities}

    def up(self, files, timeout):
        self.done.append("up")
        if "up" in self.refuses:
            self.refuses.discard("up")
            raise DockerProblem("container small-web-1 exited (1)")
        for name, service in logic.with_files(self.wanted())["services"].items():
            labels = {"com.docker.compose.project": "small", "com.docker.compose.service": name}
            labels[SPEC_LABEL] = spec_digest(service)
            state = {"Status": "running", "Health": {"Status": "healthy"}}
            box = {"Id": name, "Name": f"/{name}", "Image": "sha256:1", "Config": {"Labels": labels}, "State": state}
            self.boxes[name] = box

    def execute(self, identity, command):
        self.done.append(" ".join(command))
        if "check" in self.refuses:
            raise DockerProblem("main.conf: line 1: what?")

    def signal(self, identity, name):
        self.done.append(f"{name} to {identity}")


class MadeUpModule:
    check_mode = False

    def __init__(self, directory):
        self.params = {"directory": str(directory), "wait_timeout": 1, "lock_timeout": 0, "venv": "/"}


class Failed(Exception):
    pass


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Runs a project on a made-up host: what the module answers, or raises Failed with it."""

    class Host:
        directory = tmp_path / "small"

        def __init__(self):
            self.docker = MadeUpDocker(lambda: self.project)

        def run(self, wanted, check=False):
            self.project = wanted
            module = MadeUpModule(self.directory)
            module.check_mode = check
            self.docker.done.clear()

            def fail_json(**result):
                raise Failed(result)

            module.fail_json = fail_json
            monkeypatch.setattr(module_file, "project_of", lambda parameters: wanted)
            monkeypatch.setattr(module_file, "load_python_on_whales", lambda venv: None)
            monkeypatch.setattr(module_file, "SETTLED_SECONDS", 0)
            return module_file.run_present(module, self.docker, Releases(str(self.directory)))

        def text(self, path):
            return (self.directory / path).read_text()

    return Host()


def with_content(path, content):
    return project([file._replace(content=content) if file.path == path else file for file in FILES])


def test_the_first_run_writes_and_starts_everything_and_the_second_changes_nothing(host):
    first = host.run(project())
    assert [(step["service"], step["action"]) for step in first["steps"]] == [("web", "create"), ("data", "create")]
    assert host.text("web/main.conf") == "a"
    assert (host.directory / "secrets/password").stat().st_mode & 0o777 == 0o400
    second = host.run(project())
    assert not second["changed"]
    assert host.docker.done == []


def test_check_mode_foretells_the_first_run_and_writes_nothing(host):
    foretold = host.run(project(), check=True)
    assert not host.directory.exists()
    done = host.run(project())
    assert {key: done[key] for key in ("changed", "steps", "files", "reloaded")} == {
        key: foretold[key] for key in ("changed", "steps", "files", "reloaded")
    }


def test_a_file_that_can_be_read_again_makes_no_container_anew(host):
    host.run(project())
    result = host.run(with_content("web/main.conf", "c"))
    assert (result["steps"], result["reloaded"], result["files"]) == ([], ["web"], ["web/main.conf"])
    assert host.docker.done == ["web -t", "HUP to web"]


def test_another_mounted_file_makes_the_container_anew_and_it_alone(host):
    host.run(project())
    result = host.run(with_content("web/start.env", "c"))
    assert [(step["service"], step["action"], step["reason"]) for step in result["steps"]] == [
        ("web", "recreate", "changed: files")
    ]
    assert result["reloaded"] == []


def test_a_secret_that_changed_makes_its_service_anew_and_is_in_no_diff(host):
    host.run(project())
    result = host.run(with_content("secrets/password", "correct horse"))
    assert [step["service"] for step in result["steps"]] == ["data"]
    assert "correct horse" not in json.dumps(result)
    assert "hunter2" not in json.dumps(result)


def test_a_file_that_its_service_refuses_is_put_back_and_nobody_reads_it(host):
    host.run(project())
    host.docker.refuses.add("check")
    with pytest.raises(Failed) as failure:
        host.run(with_content("web/main.conf", "wrong"))
    assert "line 1: what?" in failure.value.args[0]["msg"]
    assert host.text("web/main.conf") == "a"
    assert "HUP to web" not in host.docker.done
    host.docker.refuses.clear()
    assert not host.run(project())["changed"]


def test_a_service_that_does_not_come_up_gives_way_to_what_ran_before(host):
    host.run(project())
    host.docker.refuses.add("up")
    with pytest.raises(Failed) as failure:
        host.run(with_content("web/start.env", "wrong"))
    assert failure.value.args[0]["rolled_back"]
    assert host.docker.done == ["up", "up"]
    assert host.text("web/start.env") == "b"


def test_a_first_run_that_does_not_come_up_leaves_nothing_behind(host):
    host.docker.refuses.add("up")
    with pytest.raises(Failed) as failure:
        host.run(project())
    assert "nothing is left running" in failure.value.args[0]["msg"]
    assert host.docker.containers() == []
    assert not (host.directory / "secrets/password").exists()


def test_what_is_not_wanted_any_more_goes(host):
    host.run(project())
    smaller = {"services": {"web": DEFINITION["services"]["web"]}}
    result = host.run(project(FILES[:2], smaller))
    assert [(step["service"], step["action"]) for step in result["steps"]] == [("data", "remove")]
    assert not (host.directory / "secrets/password").exists()


def test_a_run_that_was_cut_off_before_the_files_were_read_is_finished_by_the_next(host):
    host.run(project())
    logic.write(str(host.directory), File("web/main.conf", "c"))
    result = host.run(with_content("web/main.conf", "c"))
    assert result["files"] == []
    assert host.docker.done == ["web -t", "HUP to web"]


def test_containers_may_enter_directories_whatever_the_umask_is(host):
    before = os.umask(0o077)
    try:
        host.run(project())
    finally:
        os.umask(before)
    assert (host.directory / "web").stat().st_mode & 0o777 == 0o755
    assert (host.directory / "web/main.conf").stat().st_mode & 0o777 == 0o644


def test_permissions_changed_by_hand_are_put_right(host):
    host.run(project())
    (host.directory / "secrets/password").chmod(0o644)
    assert host.run(project())["files"] == ["secrets/password"]
    assert (host.directory / "secrets/password").stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "web/../../x", "compose.yaml", "web/main.conf"])
def test_a_path_that_cannot_be_is_refused_before_anything_is_written(host, path):
    with pytest.raises(Failed, match="Nothing was changed"):
        host.run(project([*FILES, File(path, "x")]))
    assert not host.directory.exists()


def test_a_state_that_cannot_be_read_counts_as_none(tmp_path):
    (tmp_path / logic.STATE).write_text("{")
    assert logic.read_state(str(tmp_path)) == State()
