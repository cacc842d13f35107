"""compose_project: what changes, what is read again, and the way back. Docker is made up here.

molecule/monitoring has a real one.
"""

import json
import os
import types

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import compose_project as logic
from ansible_collections.blackwell.serving.plugins.module_utils.compose_project import File, Project, Reload, State
from ansible_collections.blackwell.serving.plugins.module_utils.compose_runner import Runner, answer, take_down

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


class Failed(Exception):
    pass


@pytest.fixture
def host(tmp_path, made_up_docker):
    """Runs a project on a made-up host: what the module answers, or raises Failed with it."""

    class Host:
        directory = tmp_path / "small"

        def __init__(self):
            self.docker = made_up_docker("small")

        def run(self, wanted, check=False, url=""):
            self.docker.done.clear()
            runner = Runner(wanted, self.docker, str(self.directory), 0.1, url)
            return self.answer(lambda: runner.run(check, "/", 0))

        def answer(self, run):
            answers = []

            def fail_json(**result):
                raise Failed(result)

            answer(types.SimpleNamespace(exit_json=lambda **result: answers.append(result), fail_json=fail_json), run)
            return answers[0]

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
    assert host.docker.done == ["in web-1: web -t", "HUP to web-1"]


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
    assert failure.value.args[0] == {
        "msg": "web: its new configuration is refused. Nothing was changed.\nline 1: what?"
    }
    assert host.text("web/main.conf") == "a"
    assert "HUP to web-1" not in host.docker.done
    assert not host.run(project())["changed"]


def test_a_refused_file_moves_no_other_service_either(host):
    host.run(project())
    host.docker.refuses.add("check")
    other = {**DEFINITION, "services": {**DEFINITION["services"], "data": {"image": "data:2"}}}
    with pytest.raises(Failed, match="Nothing was changed"):
        host.run(project([File("web/main.conf", "wrong"), *FILES[1:]], other))
    assert "up" not in host.docker.done


def test_files_of_a_service_that_is_made_anew_are_judged_in_a_container_of_their_own(host):
    host.docker.refuses.add("check")
    with pytest.raises(Failed, match=r"web: its new configuration is refused. Nothing was changed"):
        host.run(project())
    assert host.docker.done == ["apart, web: web -t"]
    assert not (host.directory / "compose.yaml").exists()
    host.run(project())
    assert host.docker.done == ["apart, web: web -t", "up"]


def test_what_does_not_answer_goes_back_and_is_told_so(host, tmp_path):
    (tmp_path / "up").write_text("")
    host.run(project(), url=(tmp_path / "up").as_uri())
    with pytest.raises(Failed) as failure:
        host.run(with_content("web/main.conf", "silent"), url=(tmp_path / "down").as_uri())
    assert failure.value.args[0]["rolled_back"]
    assert host.docker.done == ["in web-1: web -t", "HUP to web-1", "HUP to web-1"]
    assert host.text("web/main.conf") == "a"


def test_a_service_that_crashes_is_named_with_its_last_words(host):
    host.docker.crashing.add("data")
    with pytest.raises(Failed, match=r"(?s)data is running, 4 restarts; its last lines:.*last words of data"):
        host.run(project())


def test_a_container_of_others_with_our_name_is_refused(host):
    host.docker.boxes["theirs"] = {"Id": "theirs-1", "Name": "/web-box", "Config": {"Labels": {}}}
    named = {"services": {"web": {**DEFINITION["services"]["web"], "container_name": "web-box"}}}
    with pytest.raises(Failed, match=r"wants the container name web-box.*Nothing was changed"):
        host.run(project(FILES[:2], named))
    assert not host.directory.exists()


def test_it_goes_as_a_whole_and_its_data_only_where_asked(host):
    def take(volumes, check=False):
        host.docker.done.clear()
        return host.answer(lambda: take_down(host.docker, str(host.directory), volumes, check, "/", 0))["changed"]

    host.run(project())
    assert take(False, check=True)
    assert (len(host.docker.boxes), host.docker.done) == (2, [])
    assert take(False)
    assert (host.docker.boxes, host.docker.done, host.directory.exists()) == ({}, ["down"], False)
    assert not take(False)
    host.run(project())
    assert take(True)
    assert host.docker.done == ["down, with volumes"]


def test_a_service_that_does_not_come_up_gives_way_to_what_ran_before(host):
    host.run(project())
    host.docker.refuses.add("up")
    with pytest.raises(Failed) as failure:
        host.run(with_content("web/start.env", "wrong"))
    assert failure.value.args[0]["rolled_back"]
    assert host.docker.done == ["up", "up"]
    assert "What ran before runs" in failure.value.args[0]["msg"]
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
    assert host.docker.done == ["in web-1: web -t", "HUP to web-1"]


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
