"""Workers of a gateway: the manifest on a real file system, and a made-up smg that behaves as the real one was seen to.

The made-up smg reads the manifest as smg 1.13.0 does: a worker that takes a new model goes on being counted, one that
left is gone at once, and one that does not answer takes nothing new.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_workers import (
    DRAINING,
    GatewayError,
    Manifest,
    Smg,
    drain,
    merged,
    wait_until_ready,
)

QWEN = {"service": "qwen", "url": "http://10.0.0.1:30002", "model": "qwen-model"}
YI = {"service": "yi", "url": "http://10.0.0.1:30003", "model": "yi-model"}


class MadeUpSmg:
    """Serves /workers. `loads`: requests in flight by worker id; `silent`: ids of workers that do not answer it."""

    def __init__(self, manifest: Manifest):
        self.manifest, self.loads, self.silent = manifest, {}, set()
        self.models: dict[str, str] = {}
        made_up = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({"workers": made_up.workers()}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.smg = Smg(f"http://127.0.0.1:{self.server.server_port}")

    def workers(self):
        listed = []
        for worker in self.manifest.workers():
            identity = worker["id"]
            if identity not in self.silent:
                self.models[identity] = worker["model_id"]
            if identity in self.models:
                listed.append(
                    {
                        "labels": {"smg.ai/discovery-id": identity},
                        "url": worker["url"],
                        "model_id": self.models[identity],
                        "status": "not_ready" if identity in self.silent else "ready",
                        "load": self.loads.get(identity, 0),
                    }
                )
        return listed

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    found = Manifest(str(tmp_path / "workers.json"))
    found.write(merged([], {"box1": [QWEN, YI], "box2": [QWEN | {"url": "http://10.0.0.2:30002"}]}))
    return found


@pytest.fixture
def made_up(manifest):
    server = MadeUpSmg(manifest)
    yield server
    server.stop()


def ids(manifest: Manifest) -> list[str]:
    return [worker["id"] for worker in manifest.workers()]


def test_hosts_that_are_not_named_keep_their_workers_as_long_as_they_are_known(manifest):
    before = manifest.workers()
    assert [w["id"] for w in merged(before, {"box1": [QWEN]}, ["box1", "box2"])] == ["box1/qwen", "box2/qwen"]
    assert [w["id"] for w in merged(before, {"box1": []}, ["box1", "box2"])] == ["box2/qwen"]
    assert [w["id"] for w in merged(before, {}, ["box1"])] == ["box1/qwen", "box1/yi"]
    assert merged(before, {}) == before


def test_a_drain_waits_for_what_is_in_flight_and_counts_it_meanwhile(manifest, made_up):
    made_up.loads = {"box1/qwen": 2, "box2/qwen": 5}
    seen = []

    def finish():
        while DRAINING not in made_up.models.values():
            time.sleep(0.01)
        seen.append(dict(made_up.models))
        made_up.loads["box1/qwen"] = 0

    threading.Thread(target=finish, daemon=True).start()
    done = drain(manifest, made_up.smg, "box1", [], 20, False)
    assert done == {"changed": True, "drained": ["box1/qwen", "box1/yi"], "cut": 0}
    assert seen == [{"box1/qwen": DRAINING, "box1/yi": DRAINING, "box2/qwen": "qwen-model"}]
    assert ids(manifest) == ["box2/qwen"]


def test_a_drain_of_one_service_leaves_the_others(manifest, made_up):
    drain(manifest, made_up.smg, "box1", ["yi"], 20, False)
    assert ids(manifest) == ["box1/qwen", "box2/qwen"]
    assert drain(manifest, made_up.smg, "box1", ["yi"], 20, False)["changed"] is False


def test_a_request_that_does_not_end_keeps_the_service_at_work(manifest, made_up):
    made_up.loads = {"box1/qwen": 1}
    before = manifest.workers()
    with pytest.raises(GatewayError, match=r"1 on box1/qwen.*take requests again.*gateway_drain_timeout"):
        drain(manifest, made_up.smg, "box1", [], 0.6, False)
    assert manifest.workers() == before


def test_a_forced_drain_says_how_much_is_cut(manifest, made_up):
    made_up.loads = {"box1/qwen": 3}
    assert drain(manifest, made_up.smg, "box1", [], 0.6, True)["cut"] == 3
    assert ids(manifest) == ["box2/qwen"]


def test_a_service_that_does_not_answer_leaves_at_once(manifest, made_up):
    made_up.smg.workers()
    made_up.silent = {"box1/qwen"}
    assert drain(manifest, made_up.smg, "box1", [], 5, False)["drained"] == ["box1/qwen", "box1/yi"]
    assert ids(manifest) == ["box2/qwen"]


def test_without_a_running_smg_nothing_is_in_flight(manifest, made_up):
    made_up.stop()
    assert drain(manifest, made_up.smg, "box1", [], 5, False)["cut"] == 0
    assert ids(manifest) == ["box2/qwen"]
    made_up.server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # for the fixture to stop
    threading.Thread(target=made_up.server.serve_forever, args=(0.01,), daemon=True).start()


def test_services_are_waited_for_and_the_one_that_is_missing_is_named(manifest, made_up):
    wait_until_ready(made_up.smg, manifest.workers(), 5)
    made_up.silent = {"box2/qwen"}
    with pytest.raises(GatewayError, match=r"box2/qwen: smg says not_ready of http://10\.0\.0\.2:30002"):
        wait_until_ready(made_up.smg, manifest.workers(), 0.1)


def test_two_hosts_that_drain_at_once_lose_no_entry(manifest):
    manifest.write(merged([], {f"box{number}": [QWEN] for number in range(20)}))

    def leave(number):
        manifest.change(lambda workers: [worker for worker in workers if worker["id"] != f"box{number}/qwen"])

    threads = [threading.Thread(target=leave, args=(number,)) for number in range(19)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids(manifest) == ["box19/qwen"]


def test_a_file_that_is_no_manifest_is_named(manifest):
    with open(manifest.path, "w") as stream:
        stream.write("{")
    with pytest.raises(GatewayError, match=r"workers\.json is no manifest.*playbooks/gateway\.yml"):
        manifest.workers()


@pytest.mark.parametrize(("state", "warnings"), [("drained", 0), ("present", 1)])
def test_a_host_that_gets_its_first_gateway_later_in_the_run_is_no_failure(run_module, tmp_path, state, warnings):
    service = {"service": "qwen", "url": "http://10.0.0.11:30002", "model": "Qwen"}
    done = run_module("gateway_workers", state=state, host="box1", services=[service], directory=str(tmp_path / "none"))
    assert (done["changed"], done.get("failed", False), len(done.get("warnings", []))) == (False, False, warnings)
    assert not (tmp_path / "none").exists()
