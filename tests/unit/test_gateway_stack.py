"""The gateway's module on a real file system, with a Docker that is made up."""

import importlib
import types

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_files import FrontFile, digest_of
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import DockerProblem
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import SPEC_LABEL, Step

gateway_stack = importlib.import_module("ansible_collections.blackwell.serving.plugins.modules.gateway_stack")

DIGEST = "sha256:" + "a" * 64
FRONT = {"nginx.conf": FrontFile("http {}\n", 0o644)}
DEFINITION = {
    "services": {
        "smg": {"image": "lightseekorg/smg:1.13.0", "container_name": "blackwell-gateway-smg"},
        "nginx": {"image": "nginx:1.30.5", "container_name": "blackwell-gateway-nginx"},
    }
}


class Failed(Exception):
    pass


class MadeUpDocker:
    """Its containers run as soon as they are started, but for those in `broken`. `done`: what it was told."""

    project, socket = "blackwell-gateway", "/nowhere"

    def __init__(self):
        self.done, self.broken = [], set()
        self.host = types.SimpleNamespace(run=self.run, docker_api=lambda *_: [{"RepoDigests": [f"nginx@{DIGEST}"]}])

    def run(self, words, **_):
        self.done.append(" ".join(words[1:4]))
        return types.SimpleNamespace(status=0, stdout="", stderr="")

    def pull(self, reference):
        self.done.append(f"pull {reference}")

    def start(self, _, service):
        self.done.append(f"start {service}")

    def remove(self, identities):
        self.done += [f"remove {identity}" for identity in identities]

    def containers(self):
        return []

    def container_of(self, service):
        status = "restarting" if service in self.broken else "running"
        return {"Id": service, "State": {"Status": status}, "RestartCount": 0}

    def log(self, identity, tail):
        return [("", f"last words of {identity}")]

    def compose(self, _):
        services = types.SimpleNamespace(services=DEFINITION["services"])
        return types.SimpleNamespace(compose=types.SimpleNamespace(config=lambda: services))


@pytest.fixture
def gateway(tmp_path):
    def fail_json(**result):
        raise Failed(result["msg"])

    parameters = {
        "directory": str(tmp_path),
        "project": "blackwell-gateway",
        "docker_socket": "/nowhere",
        "compose": "older\n",
        "definition": DEFINITION,
        "images": {},
        "front": {},
        "secrets": {},
        "check_url": "",
        "timeout": 0.1,
    }
    found = gateway_stack.Gateway(types.SimpleNamespace(params=parameters, fail_json=fail_json, check_mode=False))
    found.docker = MadeUpDocker()
    return found


def test_a_lock_decides_what_runs_and_without_one_the_tag_is_pulled_and_remembered(gateway):
    gateway.module.params["images"] = {"lightseekorg/smg:1.13.0": {"digest": DIGEST}}
    images = {name: service["image"] for name, service in gateway.definition(pull=True)["services"].items()}
    assert images == {"smg": f"lightseekorg/smg@{DIGEST}", "nginx": f"nginx@{DIGEST}"}
    assert gateway.docker.done == ["pull nginx:1.30.5"]
    assert gateway.locked == {"nginx:1.30.5": {"digest": DIGEST}}
    assert DEFINITION["services"]["nginx"]["image"] == "nginx:1.30.5"


def test_an_image_that_was_loaded_has_no_digest(gateway):
    gateway.module.params["images"] = {"nginx:1.30.5": {"id": DIGEST}}
    assert gateway.pinned("nginx:1.30.5", pull=True) == "nginx:1.30.5"
    assert gateway.docker.done == []


def test_compose_reads_pinned_images_and_labels(gateway):
    gateway.module.params["images"] = {name: {"digest": DIGEST} for name in ("lightseekorg/smg:1.13.0", "nginx:1.30.5")}
    definition = gateway.definition(pull=False)
    override = yaml.safe_load(gateway.compose_files(definition)["compose.override.yaml"])["services"]
    assert {name: service["image"] for name, service in override.items()} == {
        "smg": f"lightseekorg/smg@{DIGEST}",
        "nginx": f"nginx@{DIGEST}",
    }
    assert all(len(service["labels"][SPEC_LABEL]) == 64 for service in override.values())


def deploy(gateway, steps=(), front=FRONT, compose="older\n"):
    return gateway.deploy(DEFINITION, {"compose.yaml": compose, "compose.override.yaml": ""}, front, list(steps))


def test_a_new_configuration_alone_is_a_reload(gateway):
    deploy(gateway, [Step("smg", "create", ""), Step("nginx", "create", "")])
    assert gateway.docker.done == ["start smg", "start nginx"]
    gateway.docker.done.clear()
    assert deploy(gateway, front={"nginx.conf": FrontFile("http { }\n", 0o644)}) == ["front: reload"]
    assert gateway.docker.done == ["kill --signal HUP"]
    gateway.docker.done.clear()
    assert deploy(gateway, front=gateway.front.files()) == []
    assert gateway.docker.done == []


def test_a_reload_that_was_interrupted_is_made_up_for(gateway):
    gateway.front.write(FRONT)
    gateway.front.set_applied("of an older one")
    deploy(gateway)
    assert gateway.docker.done == ["kill --signal HUP"]
    assert gateway.front.applied() == digest_of(FRONT)


def test_what_does_not_come_up_gives_way_to_what_ran_before(gateway, tmp_path):
    deploy(gateway, [Step("smg", "create", ""), Step("nginx", "create", "")])
    started = []

    def start(files, service):
        started.append(service)
        gateway.docker.broken = {"smg"} if len(started) == 1 else set()

    gateway.docker.start = start
    with pytest.raises(Failed, match=r"(?s)smg does not come up.*last words of smg.*runs as before"):
        deploy(gateway, [Step("smg", "recreate", "")], {"nginx.conf": FrontFile("new\n", 0o644)}, "newer\n")
    assert (gateway.front.files(), (tmp_path / "compose.yaml").read_text()) == (FRONT, "older\n")


def test_without_a_gateway_before_the_failure_says_so(gateway):
    gateway.docker.broken = {"nginx"}
    with pytest.raises(Failed, match=r"(?s)nginx does not come up.*no gateway before"):
        deploy(gateway, [Step("smg", "create", ""), Step("nginx", "create", "")])


def test_a_way_back_that_fails_is_told_as_well(gateway):
    deploy(gateway)

    def start(files, service):
        raise DockerProblem("no space left on device")

    gateway.docker.start = start
    with pytest.raises(Failed, match=r"(?s)no space left.*did not come back either"):
        deploy(gateway, [Step("smg", "recreate", "")])
