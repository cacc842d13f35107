"""Starting services one after another: what is waited for, what ends the wait, what is said. Docker is made up; the
service that is asked for a token is a local HTTP server that stands in for an engine."""

import http.server
import json
import threading

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import stack_start
from ansible_collections.blackwell.serving.plugins.module_utils.diagnosis import signatures
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import DockerProblem
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Release
from ansible_collections.blackwell.serving.plugins.module_utils.stack_start import ServiceFailed, Starter, failure_text
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import Step
from ansible_collections.blackwell.serving.plugins.plugin_utils.host_catalog import read_catalog

NO_KERNEL = "RuntimeError: CUDA error: no kernel image is available for execution on the device"


class MadeUpDocker:
    """Containers whose life is a list of (state, health, new log lines), one for each look."""

    project = "serving"

    def __init__(self, lives, start_problem=None):
        self.lives, self.start_problem = lives, start_problem
        self.events, self.logs, self.looks = [], {}, {}
        self.restarts = dict.fromkeys(lives, 0)

    def answers_again(self):
        return True

    def containers(self):
        labels = {"com.docker.compose.project": "serving"}
        return [
            {"Id": name, "Config": {"Labels": labels | {"com.docker.compose.service": name}}} for name in self.looks
        ]

    def container_of(self, service):
        return self._state(service) if service in self.looks else None

    def container(self, identity):
        self.looks[identity] += 1
        return self._state(identity)

    def _life(self, name):
        return self.lives[name][: max(1, self.looks[name])]

    def _state(self, name):
        status, health, _ = self.lives[name][min(max(self.looks[name], 1), len(self.lives[name])) - 1]
        state = {"Status": status, "ExitCode": 1, "StartedAt": "", "Error": ""}
        state["Health"] = {"Status": health, "Log": [{"Output": "connection refused"}]}
        return {"Id": name, "State": state, "RestartCount": self.restarts[name]}

    def log(self, identity, since="", tail=None):
        if identity not in self.looks:
            return []
        lines = [line for _, _, new in self._life(identity) for line in new]
        timed = [(f"2099-01-01T00:00:{number:02}.000000000Z", line) for number, line in enumerate(lines)]
        return [pair for pair in timed if pair[0] > since]

    def start(self, files, service):
        if self.start_problem:
            raise DockerProblem(self.start_problem)
        self.events.append(("start", service))
        self.looks.setdefault(service, 0)

    def stop(self, identities):
        self.events += [("stop", identity) for identity in identities]

    def remove(self, identities):
        for identity in identities:
            self.events.append(("remove", identity))
            del self.looks[identity]

    def exit_statuses(self, identity, since):
        return [] if self.lives[identity][-1][0] == "exited" else ["3", "4"]

    def gpu_table(self):
        return ["0, NVIDIA GeForce RTX 5090, 30000 MiB, 2000 MiB, 32607 MiB"]


@pytest.fixture
def engine():
    """A local HTTP server that stands in for an engine; `answer` is (status, body) for each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = server.answer
            self.send_response(status)
            if server.cut:
                self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.asked, server.cut = (200, {"usage": {"completion_tokens": 1}}), [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(engine, monkeypatch):
    """`start(docker, steps)`: apply the steps to services a, b, c with a clock that does not wait."""
    clock = [0.0]
    monkeypatch.setattr(stack_start.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stack_start.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    health = {"start_period_s": 20, "retries": 1, "interval_s": 5, "timeout_s": 5}

    def apply(docker, steps, **more):
        services = [
            {
                "name": name,
                "engine": "sglang",
                "served_name": f"model-{name}",
                "bind_address": "127.0.0.1",
                "port": engine.server_port,
                "healthcheck": health,
                **more,
            }
            for name in "abc"
        ]
        known = signatures(read_catalog("failures")["failures"])
        docker.notes = []
        release = Release("/none", "deploying", {}, {"services": services})
        return Starter(docker, known, docker.notes.append).apply(release, steps)

    return apply


def comes_up(looks=3):
    return [("running", "starting", ["Load weight begin."])] * looks + [("running", "healthy", [])]


def test_each_is_healthy_and_asked_before_the_next_starts(start, engine):
    docker = MadeUpDocker({"a": comes_up(), "b": comes_up()})
    done = start(docker, [Step("a", "create", "new"), Step("b", "create", "new")])
    assert [entry["service"] for entry in done] == ["a", "b"]
    assert [request["model"] for request in engine.asked] == ["model-a", "model-b"]
    assert docker.notes.index("a: healthy, and it answers") < docker.notes.index("b: create (new)")


def test_a_rank_that_does_not_serve_is_healthy_and_not_asked(start, engine):
    docker = MadeUpDocker({"a": comes_up(), "b": comes_up()})
    for rank, asked in ((1, 0), (0, 1)):
        start(docker, [Step("ab"[rank], "create", "new")], nodes={"rank": rank, "hosts": ["one", "two"]})
        assert len(engine.asked) == asked
    assert "b: healthy, and it answers" not in docker.notes


def test_everything_that_goes_is_gone_before_anything_starts(start):
    docker = MadeUpDocker({"a": comes_up(), "b": comes_up(), "old": comes_up()})
    docker.looks = {"a": 9, "b": 9, "old": 9}
    steps = [Step("old", "remove", ""), Step("a", "recreate", ""), Step("b", "restart", "")]
    start(docker, steps)
    kinds = [kind for kind, _ in docker.events]
    assert set(docker.events[:3]) == {("stop", "b"), ("remove", "a"), ("remove", "old")}
    assert kinds[3:] == ["start", "start"]


def fails(start, docker, step=None):
    with pytest.raises(ServiceFailed) as failure:
        start(docker, [step or Step("a", "create", "new")])
    return failure.value.report


def test_a_fatal_line_ends_the_wait_though_the_container_runs_on(start):
    hangs = [("running", "starting", ["Load weight begin."]), ("running", "starting", [NO_KERNEL])]
    report = fails(start, MadeUpDocker({"a": hangs}))
    assert report["findings"][0]["line"] == NO_KERNEL
    assert report["seconds_from_fatal_line"] is not None


def test_a_container_that_ends_is_not_waited_for(start):
    docker = MadeUpDocker({"a": [*comes_up(1)[:1], ("exited", "", ["something unheard of"])]})
    report = fails(start, docker)
    assert "status 1" in report["problem"]
    assert report["findings"] == []
    assert report["log"][-1] == "something unheard of"
    assert ("stop", "a") in docker.events
    assert "No line of its log is recognised" in failure_text(report)


def test_a_restart_by_docker_counts_as_an_end(start):
    class Restarting(MadeUpDocker):
        def container(self, identity):
            self.restarts[identity] = min(self.looks[identity], 1)
            return super().container(identity)

    assert "ended with status 3" in fails(start, Restarting({"a": comes_up(20)}))["problem"]


def test_one_that_never_gets_healthy_ends_at_its_limit(start):
    report = fails(start, MadeUpDocker({"a": [("running", "starting", [])]}))
    assert "not healthy after 30 s" in report["problem"]
    assert "connection refused" in report["problem"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param((404, {"message": "The model does not exist."}), "404", id="wrong model"),
        pytest.param((200, {"usage": {"completion_tokens": 0}}), "no token", id="no token"),
        pytest.param((200, "words"), "no token", id="not the answer of an engine"),
    ],
)
def test_a_healthy_service_that_does_not_generate_has_failed(start, engine, answer, said):
    engine.answer = answer
    assert said in fails(start, MadeUpDocker({"a": comes_up()}))["problem"]


def test_an_answer_that_breaks_off_is_a_failure(start, engine):
    """As of an engine that dies over its first request."""
    engine.cut = True
    assert "does not answer one request: IncompleteRead" in fails(start, MadeUpDocker({"a": comes_up()}))["problem"]


def test_what_docker_refuses_is_explained(start):
    words = "Bind for 127.0.0.1:30001 failed: port is already allocated"
    report = fails(start, MadeUpDocker({"a": comes_up()}, start_problem=words))
    assert words in report["problem"]
    assert report["findings"]
    text = failure_text(report)
    assert "remedy" in text
    assert "RTX 5090" in text


def test_a_service_that_is_starting_by_itself_is_only_watched(start):
    docker = MadeUpDocker({"a": comes_up()})
    docker.looks = {"a": 0}
    start(docker, [Step("a", "wait", "it is starting")])
    assert docker.events == []


class RestartingEngine(MadeUpDocker):
    """While dockerd starts anew, it says nothing of any container."""

    def __init__(self, *arguments, comes_back=True):
        super().__init__(*arguments)
        self.comes_back, self.gone = comes_back, False

    def answers_again(self):
        self.gone = not self.comes_back
        return self.comes_back

    def container(self, identity):
        self.gone = self.gone or self.looks[identity] == 1
        found = super().container(identity)
        return None if self.gone else found


def test_an_engine_that_starts_anew_is_waited_for(start):
    docker = RestartingEngine({"a": comes_up(5)})
    start(docker, [Step("a", "create", "new")])
    assert docker.notes[-1] == "a: healthy, and it answers"


def test_an_engine_that_does_not_come_back_is_named(start):
    with pytest.raises(DockerProblem, match="does not answer any more"):
        start(RestartingEngine({"a": comes_up(5)}, comes_back=False), [Step("a", "create", "new")])


def test_one_that_ended_and_was_started_again_before_the_first_look_has_failed(start):
    docker = MadeUpDocker({"a": comes_up(20)})
    docker.restarts["a"] = 1
    assert "ended" in fails(start, docker)["problem"]


def test_restarts_of_before_do_not_count_for_one_that_is_starting_by_itself(start):
    docker = MadeUpDocker({"a": comes_up()})
    docker.looks, docker.restarts["a"] = {"a": 0}, 2
    start(docker, [Step("a", "wait", "it is starting")])
    assert docker.notes[-1] == "a: healthy, and it answers"


def test_the_line_that_decided_it_is_found_in_a_container_that_ended(start):
    """The engine says why and ends between two looks at it."""

    class EndsBetweenLooks(MadeUpDocker):
        def log(self, identity, since="", tail=None):
            return super().log(identity, since, tail) if tail else []

    report = fails(start, EndsBetweenLooks({"a": [("exited", "", [NO_KERNEL])]}))
    assert "status 1" in report["problem"]
    assert report["seconds_from_fatal_line"] is not None
