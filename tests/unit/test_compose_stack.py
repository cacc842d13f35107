"""What compose_stack does when something fails halfway. Docker and its services are made up."""

import errno

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Output
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import DockerProblem
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import FAILED, Release
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import Step
from ansible_collections.blackwell.serving.plugins.modules import compose_stack

FULL = OSError(errno.ENOSPC, "No space left on device")


class Failed(Exception):
    """The module ended; holds what it said."""


class MadeUpModule:
    check_mode = False

    def __init__(self, directory):
        self.params = {"project": "serving", "directory": str(directory), "docker_socket": "", "signatures": []}
        self.params |= {"compose": "services: {}\n", "trial_seconds": 0, "unit": "serving.service"}

    def fail_json(self, **result):
        raise Failed(result)


@pytest.fixture
def stack(tmp_path):
    """A stack with one release that serves; `brought` are the releases whose services were started."""
    stack = compose_stack.Stack(MadeUpModule(tmp_path / "stack"))
    stack.brought = []
    stack.steps = lambda release: []
    stack.bring = lambda release, steps: stack.brought.append(release.name) or []
    with stack.releases.locked(0):
        stack.deploy(Release("", "", {"services": {}}, {"services": [], "gpus": [], "number": 1}), new=True)
    stack.first = stack.releases.current().name
    stack.brought.clear()
    return stack


def deploy(stack):
    with pytest.raises(Failed) as failure, stack.releases.locked(0):
        stack.deploy(Release("", "", {"services": {}}, {"services": [], "gpus": [], "number": 2}), new=True)
    return failure.value.args[0]


def fails_with(problem):
    def action(*_):
        raise problem

    return action


def test_a_release_that_cannot_be_written_stops_nothing(stack):
    stack.releases.add = fails_with(FULL)
    assert "cannot be written" in deploy(stack)["msg"]
    assert stack.brought == []


def test_a_release_that_cannot_become_current_gives_way(stack):
    stack.releases.make_current = fails_with(FULL)
    result = deploy(stack)
    assert "No space left on device" in result["msg"]
    assert result["rolled_back"]
    assert stack.brought[-1] == stack.first
    assert stack.releases.current().name == stack.first


def test_a_failure_that_cannot_be_written_down_does_not_keep_the_release_before_from_serving(stack):
    bring = stack.bring

    def fails_first(release, steps):
        bring(release, steps)
        if len(stack.brought) == 1:
            raise DockerProblem("it does not start")
        return []

    stack.bring, mark = fails_first, stack.releases.mark
    stack.releases.mark = lambda path, status, content: (
        fails_with(FULL)() if status == FAILED else mark(path, status, content)
    )
    result = deploy(stack)
    assert "it does not start" in result["msg"]
    assert result["rolled_back"]
    assert stack.brought[-1] == stack.first


def test_a_deployment_goes_on_where_its_log_cannot_be_written():
    compose_stack.note("/dev/full", "words")


def test_a_lock_is_taken_on_a_full_disk(stack, monkeypatch):
    monkeypatch.setattr("os.write", fails_with(FULL))
    with stack.releases.locked(0):
        pass


def test_where_the_current_release_itself_fails_the_way_back_is_named(stack):
    with stack.releases.locked(0):
        stack.deploy(Release("", "", {"services": {}}, {"services": [], "gpus": [], "number": 2}), new=True)
    stack.bring = fails_with(DockerProblem("it does not start"))
    with pytest.raises(Failed) as failure:
        stack.deploy(stack.releases.current(), new=False)
    result = failure.value.args[0]
    assert f"rollback.yml goes back to {stack.first}" in result["msg"]
    assert not result["rolled_back"]


def container(name, status):
    labels = {"com.docker.compose.project": "serving", "com.docker.compose.service": name}
    return {"Id": name, "Name": f"/{name}", "Config": {"Labels": labels}, "State": {"Status": status}}


@pytest.fixture
def module(stack, monkeypatch):
    """The stack's module, as it stops and starts; `stopped` are the containers that it stopped."""
    monkeypatch.setattr(compose_stack, "need_docker", lambda *_: None)
    monkeypatch.setattr(compose_stack, "need_python_on_whales", lambda *_: None)
    module = stack.module
    module.check_mode = False
    module.params |= {"lock_timeout": 0, "venv": ""}
    module.stopped = []
    stack.docker.stop = module.stopped.extend
    stack.docker.containers = lambda: [
        container("qwen", "running"),
        container("yi", "restarting"),
        container("old", "exited"),
        {**container("others", "running"), "Config": {"Labels": {"com.docker.compose.project": "others"}}},
    ]
    return module


def test_what_runs_or_would_again_is_stopped_and_nothing_of_others(module, stack):
    module.check_mode = True
    assert compose_stack.run_stopped(module, stack)["changed"]
    assert module.stopped == []
    module.check_mode = False
    assert compose_stack.run_stopped(module, stack)["changed"]
    assert module.stopped == ["qwen", "yi"]
    stack.docker.containers = lambda: [container("qwen", "exited")]
    assert not compose_stack.run_stopped(module, stack)["changed"]


def test_the_release_that_serves_is_started_where_something_of_it_does_not_run(module, stack):
    assert not compose_stack.run_started(module, stack)["differs"]
    assert stack.brought == []
    stack.steps = lambda release: [] if stack.brought else [Step("qwen", "start", "it has exited")]
    module.check_mode = True
    assert compose_stack.run_started(module, stack)["differs"]
    assert stack.brought == []
    module.check_mode = False
    result = compose_stack.run_started(module, stack)
    assert stack.brought == [stack.first]
    assert (result["release"], result["services"]) == (stack.first, [])


def test_where_no_release_serves_there_is_nothing_to_start(module, stack):
    stack.releases.forget_all()
    assert compose_stack.run_started(module, stack) == {"changed": False, "differs": False, "steps": [], "services": []}


def try_out(stack, number=2):
    stack.module.params["trial_seconds"] = 60
    with stack.releases.locked(0):
        result = stack.deploy(
            Release("", "", {"services": {}}, {"services": [], "gpus": [], "number": number}), new=True
        )
    stack.module.params["trial_seconds"] = 0
    return result


def test_a_trial_runs_but_is_not_the_release_that_serves(stack):
    assert try_out(stack)["release"] == stack.first
    assert stack.brought[-1] != stack.first
    assert stack.releases.current().name == stack.first
    assert stack.releases.previous() is None, "rollback must not go to a trial"


def test_nothing_is_left_of_trials(stack):
    for number in (2, 3):
        try_out(stack, number)
    with stack.releases.locked(0):
        stack.deploy(stack.releases.current(), new=False)
    assert stack.releases.names() == [stack.first]
    assert stack.brought[-1] == stack.first


def test_a_trial_that_fails_gives_way(stack):
    bring = stack.bring
    stack.bring = lambda release, steps: bring(release, steps) if release.name == stack.first else fails_with(FULL)()
    with pytest.raises(Failed) as failure:
        try_out(stack)
    assert failure.value.args[0]["rolled_back"]
    assert stack.brought[-1] == stack.first


class TimerHost:
    """Has a trial's timer or not, and notes what it was told."""

    def __init__(self, timer=False, status=0):
        self.timer, self.status, self.commands = timer, status, []

    def exists(self, path):
        return self.timer and path == "/run/systemd/transient/blackwell-serving-trial.timer"

    def run(self, command):
        self.commands.append(" ".join(command))
        return Output(self.status, "", "no systemd")


def test_a_trial_ends_by_itself(stack):
    stack.docker.host = TimerHost(timer=True)
    stack.module.params["trial_seconds"] = 60
    stack.end_trial_by_itself()
    stopped, started = stack.docker.host.commands
    assert stopped == "systemctl stop blackwell-serving-trial.timer"
    assert "--on-active=60" in started
    assert started.endswith("systemctl restart serving.service")


def test_no_trial_without_its_end(stack):
    stack.docker.host = TimerHost(status=1)
    stack.module.params["trial_seconds"] = 60
    with pytest.raises(Failed) as failure:
        stack.end_trial_by_itself()
    assert "no systemd" in failure.value.args[0]["msg"]


def test_where_there_is_no_trial_nothing_is_stopped(stack):
    stack.docker.host = TimerHost()
    stack.end_trial()
    assert stack.docker.host.commands == []
