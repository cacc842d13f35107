"""How a host is read: commands, the Docker engine's socket, file systems, sockets of processes."""

import http.server
import os
import socket
import socketserver
import threading
import time

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.system import listening_sockets

ANSWERS = {"/info": b'{"ServerVersion": "29.9.0"}', "/broken": b"{"}


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/hang":
            time.sleep(30)
            return
        content = ANSWERS.get(self.path, b"{}")
        self.send_response(200 if self.path in ANSWERS else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)


@pytest.fixture
def engine_socket(tmp_path):
    path = str(tmp_path / "docker.sock")
    with UnixServer(path, Engine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_engine_is_asked_over_one_connection(engine_socket):
    answers = Host().docker_api(engine_socket, ["/info", "/missing", "/info"])
    assert answers == [{"ServerVersion": "29.9.0"}, None, {"ServerVersion": "29.9.0"}]


@pytest.mark.parametrize("path", ["/hang", "/broken"])
def test_engine_that_does_not_answer_right_is_no_error(engine_socket, path):
    started = time.monotonic()
    assert Host().docker_api(engine_socket, ["/info", path, "/info"], timeout=0.2) == [
        {"ServerVersion": "29.9.0"},
        None,
        None,
    ]
    assert time.monotonic() - started < 5


def test_engine_that_is_not_there_is_no_error(tmp_path):
    assert Host().docker_api(str(tmp_path / "none.sock"), ["/info", "/containers/json"]) == [None, None]


def test_command_that_is_not_installed():
    answer = Host().run(["no-such-command-here", "--version"])
    assert answer.status is None
    assert answer.stderr == "no-such-command-here is not installed"


def test_command_that_hangs_is_left_after_its_time():
    started = time.monotonic()
    answer = Host().run(["sleep", "5"], timeout=0.2)
    assert (answer.status, answer.stderr) == (None, "sleep gave no answer in 0.2 s")
    assert time.monotonic() - started < 3


def test_commands_run_at_the_same_time_in_the_locale_c():
    started = time.monotonic()
    answers = Host().run_all({str(number): ["sh", "-c", "sleep 0.4; echo $LC_ALL; exit 3"] for number in range(4)})
    assert [tuple(answer) for answer in answers.values()] == [(3, "C\n", "")] * 4
    assert time.monotonic() - started < 1.5


def test_what_is_absent_is_none(tmp_path):
    host = Host()
    assert host.read(str(tmp_path / "none")) is None
    assert host.read(str(tmp_path)) is None
    assert host.glob(str(tmp_path / "*")) == []


def test_file_system_of_a_path_that_does_not_exist_yet(tmp_path):
    numbers = os.statvfs(tmp_path)
    found = Host().file_system(str(tmp_path / "not/yet/there"))
    assert os.path.ismount(found.mount)
    assert str(tmp_path).startswith(found.mount)
    assert found.size == numbers.f_blocks * numbers.f_frsize


def test_process_behind_a_listening_port():
    host = Host()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = server.getsockname()[1]
        inodes = listening_sockets(host.read("/proc/net/tcp"))
        assert client.getsockname()[1] not in inodes
        owner = host.socket_owners([inodes[port]])[inodes[port]]
    assert owner.endswith(f", process {os.getpid()}")
