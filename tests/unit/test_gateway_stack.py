"""The gateway's module on a real file system, with a Docker that is made up. molecule/operate has a real one."""

import importlib
import json
import types

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import SPEC_LABEL

gateway_stack = importlib.import_module("ansible_collections.blackwell.serving.plugins.modules.gateway_stack")

DIGEST = "sha256:" + "a" * 64
SMG, NGINX = "lightseekorg/smg:1.13.0", "nginx:1.30.5"
DEFINITION = {
    "services": {
        "smg": {"image": SMG, "container_name": "blackwell-gateway-smg"},
        "nginx": {"image": NGINX, "container_name": "blackwell-gateway-nginx", "command": ["nginx", "-c", "main"]},
    }
}
WORKERS = {"box1": [{"service": "qwen", "url": "http://10.0.0.11:30002", "model": "Qwen"}]}


class Failed(Exception):
    pass


@pytest.fixture
def gateway(tmp_path, made_up_docker, monkeypatch):
    """Runs the module: what it answers, or raises Failed with its message."""

    class Gateway:
        docker = made_up_docker("blackwell-gateway")
        directory = tmp_path / "gateway"

        def __init__(self):
            monkeypatch.setattr(gateway_stack, "StackDocker", lambda *_: self.docker)
            monkeypatch.setattr(gateway_stack, "AnsibleModule", lambda **_: self.module)
            self.parameters = {
                "directory": str(self.directory),
                "project": "blackwell-gateway",
                "docker_socket": "/nowhere",
                "venv": "/",
                "compose": yaml.safe_dump(DEFINITION),
                "definition": DEFINITION,
                "images": {SMG: {"digest": DIGEST}, NGINX: {"digest": DIGEST}},
                "front": {"nginx.conf": "http {}\n"},
                "secrets": {"keys.conf": "older key\n"},
                "workers": WORKERS,
                "known_hosts": ["box1", "box2"],
                "check_url": "",
                "timeout": 0.1,
                "lock_timeout": 0,
            }

        def run(self, check=False, **changes):
            self.docker.done.clear()
            found = []

            def fail_json(**result):
                raise Failed(result["msg"])

            self.module = types.SimpleNamespace(
                params={**self.parameters, **changes},
                check_mode=check,
                fail_json=fail_json,
                exit_json=lambda **result: found.append(result),
            )
            gateway_stack.main()
            return found[0]

        def workers(self):
            return json.loads((self.directory / "workers/workers.json").read_text())["workers"]

        def file(self, name):
            return self.directory / name

    return Gateway()


def test_the_first_run_starts_it_with_its_workers_and_the_second_changes_nothing(gateway):
    seen = []
    up = gateway.docker.up
    gateway.docker.up = lambda *what: (seen.append(gateway.workers()), up(*what))
    first = gateway.run()
    assert first["steps"] == ["smg: create, it has no container", "nginx: create, it has no container"]
    assert [[worker["id"] for worker in workers] for workers in seen] == [["box1/qwen"]]
    second = gateway.run()
    assert (second["changed"], second["diff"], gateway.docker.done) == (False, [], [])


def test_check_mode_writes_nothing(gateway):
    assert gateway.run(check=True)["changed"]
    assert not gateway.directory.exists()
    assert gateway.docker.done == []


def test_a_new_key_is_a_reload_in_no_output_and_for_root_alone(gateway):
    gateway.run()
    result = gateway.run(secrets={"keys.conf": "newer key\n"})
    assert result["steps"] == ["nginx: reads its files again"]
    assert gateway.docker.done == ["in nginx-1: nginx -c main -t -q", "HUP to nginx-1"]
    assert gateway.file("front/keys.conf").read_text() == "newer key\n"
    assert gateway.file("front/keys.conf").stat().st_mode & 0o777 == 0o600
    assert "key\\n" not in json.dumps(result)
    written = [path for path in gateway.directory.rglob("*") if path.is_file() and "newer key" in path.read_text()]
    assert written == [gateway.file("front/keys.conf")]


def test_a_file_that_is_not_wanted_any_more_goes(gateway):
    gateway.run(front={"nginx.conf": "http {}\n", "tls.crt": "certificate"})
    assert gateway.run()["steps"] == ["nginx: reads its files again"]
    assert not gateway.file("front/tls.crt").exists()


def test_new_workers_touch_no_container_and_others_keep_theirs(gateway):
    gateway.run()
    result = gateway.run(workers={"box2": [{"service": "yi", "url": "http://10.0.0.12:30003", "model": "Yi"}]})
    assert (result["changed"], result["steps"], gateway.docker.done) == (True, [], [])
    assert [worker["id"] for worker in gateway.workers()] == ["box1/qwen", "box2/yi"]
    assert result["diff"][-1]["after"].splitlines()[1] == "box2/yi  Yi  http://10.0.0.12:30003"
    assert gateway.run(known_hosts=["box1"])["changed"]
    assert [worker["id"] for worker in gateway.workers()] == ["box1/qwen"]


def test_a_refused_configuration_changes_nothing_neither_workers_nor_smg(gateway):
    gateway.run()
    gateway.docker.refuses.add("check")
    slower = json.loads(json.dumps(DEFINITION))
    slower["services"]["smg"]["command"] = ["--slower"]
    with pytest.raises(Failed, match=r"configuration is refused. Nothing was changed.\nline 1: what\?"):
        gateway.run(front={"nginx.conf": "wrong"}, workers={"box1": []}, definition=slower)
    assert gateway.docker.done == ["in nginx-1: nginx -c main -t -q"]
    assert gateway.file("front/nginx.conf").read_text() == "http {}\n"
    assert len(gateway.workers()) == 1


def test_a_manifest_that_cannot_be_read_is_named_before_anything_moves(gateway):
    gateway.run()
    gateway.file("workers/workers.json").write_text("{")
    with pytest.raises(Failed, match=r"workers\.json is no manifest"):
        gateway.run(front={"nginx.conf": "newer"})
    assert gateway.docker.done == []


def test_a_lock_decides_what_runs_and_without_one_the_tag_is_pulled_and_remembered(gateway):
    gateway.docker.there, gateway.docker.digests = set(), {NGINX: DIGEST}
    result = gateway.run(images={SMG: {"digest": DIGEST}})
    assert gateway.docker.done[0] == f"pull {NGINX}"
    assert result["locked"] == {NGINX: {"digest": DIGEST}}
    override = yaml.safe_load(gateway.file("compose.override.yaml").read_text())["services"]
    assert {name: service["image"] for name, service in override.items()} == {
        "smg": f"lightseekorg/smg@{DIGEST}",
        "nginx": f"nginx@{DIGEST}",
    }
    assert all(len(service["labels"][SPEC_LABEL]) == 64 for service in override.values())
    assert not gateway.run()["changed"]


def test_an_image_that_was_loaded_has_no_digest_and_is_known_by_its_id(gateway):
    gateway.run(images={SMG: {"id": "sha256:1"}, NGINX: {"id": "sha256:1"}})
    assert f"image: {NGINX}\n" in gateway.file("compose.override.yaml").read_text()
    assert not any(line.startswith("pull") for line in gateway.docker.done)
    with pytest.raises(Failed, match=rf"{NGINX} is another image on this host .* Nothing was changed"):
        gateway.run(images={SMG: {"id": "sha256:1"}, NGINX: {"id": DIGEST}}, front={"nginx.conf": "newer"})
    assert gateway.docker.done == []


def test_an_image_that_is_here_is_locked_without_a_registry(gateway):
    gateway.docker.digests = {NGINX: DIGEST}
    assert gateway.run(images={SMG: {"digest": DIGEST}})["locked"] == {NGINX: {"digest": DIGEST}}
    assert not any(line.startswith("pull") for line in gateway.docker.done)


def test_an_image_that_cannot_be_pulled_changes_nothing(gateway):
    gateway.docker.there = set()
    gateway.docker.refuses.add("pull")
    with pytest.raises(Failed, match=r"(?s)cannot be pulled. Nothing was changed.*manifest unknown"):
        gateway.run()
    assert not gateway.file("compose.yaml").exists()


def test_a_gateway_of_an_older_release_reloads_once_and_restarts_nothing(gateway):
    gateway.run()
    gateway.file("project.json").unlink()
    assert gateway.run()["steps"] == ["nginx: reads its files again"]
    assert not gateway.run()["changed"]
