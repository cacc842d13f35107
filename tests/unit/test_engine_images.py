"""The module against a made-up docker command; and, cheaply, against a real engine."""

import datetime
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.blackwell.serving.plugins.modules import engine_images

MADE_UP_DOCKER = Path(__file__).resolve().parents[1] / "fixtures/made_up_docker.py"
NAME = "lmsysorg/sglang:v0.5.19-cu129"
DIGEST, OTHER_DIGEST = "sha256:" + "d" * 64, "sha256:" + "e" * 64
ID, OTHER_ID = "sha256:" + "1" * 64, "sha256:" + "2" * 64
LOCKED = {"reference": NAME, "lock": {"digest": DIGEST}}
PASSWORD = "correct horse"


class Host:
    """A directory with the made-up docker, its state, and what it was told."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys
        self.write(local=[], registry={}, containers=[], buildx=True)

    def write(self, **changes) -> None:
        path = self.home / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(state | changes))

    @property
    def state(self) -> dict:
        return json.loads((self.home / "state.json").read_text())

    def publish(self, name: str = NAME, digest: str = DIGEST, identity: str = ID, **more) -> None:
        self.write(registry={**self.state["registry"], name: {"digest": digest, "id": identity, **more}})

    def have(self, identity: str = ID, tags=(NAME,), digests=(), **more) -> None:
        image = {"Id": identity, "RepoTags": list(tags), "RepoDigests": list(digests), "Architecture": "amd64"}
        self.write(local=[*self.state["local"], {**image, "Size": 1000, "Config": {}, **more}])

    def calls(self, verb: str) -> list[dict]:
        path = self.home / "calls"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if " ".join(call["argv"]).startswith(verb)]

    def run(self, *images: dict, check: bool = False, **options) -> dict:
        """The module's result; `failed` where it failed."""
        arguments = {
            "images": list(images),
            "retry_delay": 0,
            "keep_free_gib": 0,
            "progress_path": str(self.home / "progress/images.log"),
            "cache_path": str(self.home / "cache/image_code.json"),
            **options,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            "_ansible_remote_tmp": str(self.home / "tmp"),
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            engine_images.main()
        self.output = self.capsys.readouterr().out
        return json.loads(self.output)

    @property
    def progress(self) -> str:
        return (self.home / "progress/images.log").read_text()


@pytest.fixture
def host(tmp_path: Path, capsys, monkeypatch) -> Host:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / "tmp").mkdir()
    command = f'MADE_UP_DOCKER={tmp_path} exec {sys.executable} -S {MADE_UP_DOCKER} "$@"'
    (tools / "docker").write_text(f"#!/bin/sh\n{command}\n")
    (tools / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    return Host(tmp_path, capsys)


def only(result: dict) -> dict:
    (image,) = result["images"]
    return image


def test_a_locked_image_is_pulled_by_its_digest_and_named(host: Host):
    host.publish(layers={"a": 100, "b": 50})
    result = host.run(LOCKED)
    assert result["changed"]
    assert [call["argv"] for call in host.calls("pull")] == [["pull", f"{NAME}@{DIGEST}"]]
    assert (only(result)["id"], only(result)["digest"], only(result)["action"]) == (ID, DIGEST, "pull")
    assert host.state["local"][0]["RepoTags"] == [NAME]
    assert result["progress"]["bytes"] == 150
    assert result["locked"] == {}
    assert "2 of 2 layers" in host.progress


def test_the_second_run_asks_no_registry_and_changes_nothing(host: Host):
    host.publish()
    host.run(LOCKED)
    (host.home / "calls").unlink()
    result = host.run(LOCKED)
    assert (result["changed"], only(result)["action"], only(result)["present"]) == (False, "none", True)
    assert not host.calls("pull")
    assert not host.calls("manifest")


def test_a_tag_that_moved_is_pointed_back_to_what_is_locked(host: Host):
    host.have(OTHER_ID)
    host.have(ID, tags=(), digests=[f"lmsysorg/sglang@{DIGEST}"])
    result = host.run(LOCKED)
    assert (result["changed"], only(result)["action"], only(result)["id"]) == (True, "tag", ID)
    assert not host.calls("pull")
    assert {image["Id"]: image["RepoTags"] for image in host.state["local"]} == {OTHER_ID: [], ID: [NAME]}
    assert host.run(LOCKED)["changed"] is False


def test_a_tag_without_a_lock_is_pulled_and_its_digest_told(host: Host):
    host.publish()
    result = host.run({"reference": NAME})
    assert [call["argv"] for call in host.calls("pull")] == [["pull", NAME]]
    assert result["locked"] == {NAME: {"digest": DIGEST}}


def test_what_is_there_under_the_tag_is_locked_without_a_pull_unless_it_is_refreshed(host: Host):
    host.publish(digest=OTHER_DIGEST, identity=OTHER_ID)
    host.have(digests=[f"lmsysorg/sglang@{DIGEST}"])
    result = host.run({"reference": NAME})
    assert (result["changed"], result["locked"]) == (False, {NAME: {"digest": DIGEST}})
    refreshed = host.run({"reference": NAME}, refresh=True)
    assert (refreshed["changed"], refreshed["locked"]) == (True, {NAME: {"digest": OTHER_DIGEST}})


def test_an_image_without_a_digest_is_no_stand_in_for_the_published_one(host: Host):
    host.publish(identity=OTHER_ID)
    host.have()
    result = host.run({"reference": NAME})
    assert (only(result)["action"], only(result)["id"]) == ("pull", OTHER_ID)


def test_a_pull_that_breaks_off_goes_on_with_what_is_missing(host: Host):
    errors = ["unexpected EOF", "net/http: TLS handshake timeout"]
    host.publish(layers={"a": 100, "b": 50, "c": 7}, done=["a"], errors=errors)
    result = host.run(LOCKED, retries=2)
    assert only(result)["present"]
    assert len(host.calls("pull")) == 3
    assert result["progress"]["bytes"] == 57
    assert "attempt 3 of 3" in host.progress
    assert "TLS handshake timeout" in host.progress


def test_a_network_that_stays_away_ends_the_attempts(host: Host):
    lookup = "Get https://registry-1.docker.io/v2/: dial tcp: lookup registry-1.docker.io: no such host"
    host.publish(errors=[lookup] * 9)
    result = host.run(LOCKED, retries=2)
    assert result["failed"]
    assert len(host.calls("pull")) == 3
    assert "in 3 attempts" in result["msg"]
    assert "no such host" in result["msg"]
    assert "gpu_host_proxy" in result["msg"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("pull access denied for x, repository does not exist or may require 'docker login'", "wants a login"),
        ("unauthorized: authentication required", "engine_image_registry_username"),
        ("toomanyrequests: You have reached your unauthenticated pull rate limit.", "mirror"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "architecture"),
        ('failed to resolve reference "docker.io/lmsysorg/x:1": docker.io/lmsysorg/x:1: not found', "no such image"),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "Free space"),
        ("tls: failed to verify certificate: x509: certificate signed by unknown authority", "/etc/docker/certs.d"),
    ],
)
def test_what_trying_again_does_not_heal_is_tried_once(host: Host, said: str, told: str):
    host.publish(errors=[f"Error response from daemon: {said}"] * 3)
    result = host.run(LOCKED)
    assert result["failed"]
    assert len(host.calls("pull")) == 1
    assert told in result["msg"]
    assert said.rstrip(".") in result["msg"]


def test_an_unknown_tag_is_named(host: Host):
    result = host.run({"reference": "vllm/vllm-openai:v9"})
    assert len(host.calls("pull")) == 1
    assert "vllm/vllm-openai:v9 cannot be pulled" in result["msg"]
    assert "no such image" in result["msg"]


def test_what_came_before_a_failure_is_told(host: Host):
    host.publish()
    result = host.run(LOCKED, {"reference": "vllm/vllm-openai:v9"})
    assert result["failed"]
    assert f"Brought before that: {NAME}" in result["msg"]


@pytest.mark.parametrize(
    ("published", "wanted", "how"),
    [
        ({"layers": {"a": 10**15}}, {}, "to download"),
        ({}, {"estimated_gib": 10**6}, "estimated"),
    ],
)
def test_nothing_is_pulled_where_the_disk_is_too_small(host: Host, published: dict, wanted: dict, how: str):
    host.publish("vllm/vllm-openai:v1", OTHER_DIGEST, OTHER_ID, layers={"f": 1})
    host.publish(**published)
    small = {"reference": "vllm/vllm-openai:v1"}
    result = host.run(small, LOCKED | wanted)
    assert result["failed"]
    assert how in result["msg"]
    assert str(host.home) in result["msg"]
    assert not host.calls("pull")
    assert host.run(small, LOCKED | wanted, check_disk=False)["changed"]


def test_space_that_is_to_stay_free_counts(host: Host):
    host.publish(layers={"a": 1})
    assert "to stay free" in host.run(LOCKED, keep_free_gib=10**6)["msg"]
    warned = host.run(LOCKED, keep_free_gib=10**6, check=True)
    assert "Outside check mode this fails" in json.dumps(warned["warnings"])


def test_the_disk_that_counts_is_the_one_with_the_images(tmp_path: Path):
    root = engine_images.image_store.storage_root
    snapshotter = {"DockerRootDir": "/data", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    assert root({"DockerRootDir": "/data", "DriverStatus": [["Backing Filesystem", "extfs"]]}, str(tmp_path)) == "/data"
    assert root(snapshotter, str(tmp_path)) == str(tmp_path)
    assert root(snapshotter, str(tmp_path / "none")) == "/data"


def archive(host: Host, *entries: tuple[str, str]) -> str:
    path = host.home / "archive.tar"
    path.write_text(json.dumps([{"name": name, "id": identity} for name, identity in entries]))
    return str(path)


def test_an_archive_is_loaded_once(host: Host):
    image = {"reference": NAME, "source": "load", "archive": archive(host, (NAME, ID)), "lock": {"id": ID}}
    result = host.run(image)
    assert (result["changed"], only(result)["action"], only(result)["id"]) == (True, "load", ID)
    again = host.run(image)
    assert (again["changed"], len(host.calls("load"))) == (False, 1)


def test_an_archive_with_another_image_is_refused_and_the_name_put_back(host: Host):
    host.have("sha256:" + "3" * 64)
    image = {"reference": NAME, "source": "load", "archive": archive(host, (NAME, OTHER_ID)), "lock": {"id": ID}}
    result = host.run(image)
    assert result["failed"]
    for words in (ID, OTHER_ID, "serving_image_locks"):
        assert words in result["msg"]
    assert [image["Id"] for image in host.state["local"] if NAME in image["RepoTags"]] == ["sha256:" + "3" * 64]


def test_an_archive_that_is_not_to_be_kept_is_gone_once_its_image_is_there(host: Host):
    image = {"reference": NAME, "source": "load", "archive": archive(host, (NAME, OTHER_ID)), "lock": {"id": ID}}
    image["archive_kept"] = False
    assert host.run(image)["failed"]
    assert os.path.exists(image["archive"])
    archive(host, (NAME, ID))
    host.run(image, check=True)
    assert os.path.exists(image["archive"])
    assert only(host.run(image))["action"] == "load"
    assert not os.path.exists(image["archive"])
    assert not host.run(image)["changed"]


def test_an_archive_without_the_image_is_refused(host: Host):
    path = archive(host, ("something:else", OTHER_ID))
    result = host.run({"reference": NAME, "source": "load", "archive": path})
    assert "does not hold" in result["msg"]
    assert "something:else" in result["msg"]


def test_an_archive_that_is_not_there_fails_or_is_awaited(host: Host):
    image = {"reference": NAME, "source": "load", "archive": "/nowhere/x.tar"}
    assert "/nowhere/x.tar" in host.run(image)["msg"]
    result = host.run(image | {"archive_follows": True})
    assert (result["awaited"], result["changed"], only(result)["present"]) == ([NAME], False, False)


def test_a_digest_is_no_lock_for_an_archive(host: Host):
    result = host.run({"reference": NAME, "source": "load", "archive": "/x.tar", "lock": {"digest": DIGEST}})
    assert "keeps no digest" in result["msg"]


def test_an_image_that_is_locked_by_its_id_must_be_there(host: Host):
    image = {"reference": NAME, "source": "present", "lock": {"id": ID}}
    assert "engine_image_archives" in host.run(image)["msg"]
    host.have(OTHER_ID)
    assert OTHER_ID in host.run(image)["msg"]
    host.write(local=[])
    host.have(ID)
    assert host.run(image)["changed"] is False


BUILD = {"dockerfile": "FROM base\n", "files": {"a.py": "print()\n"}, "inputs": "abc", "recipe": "sglang-cu129"}


@pytest.mark.parametrize("buildx", [True, False])
def test_an_image_is_built_once_for_the_same_inputs(host: Host, buildx: bool):
    host.write(buildx=buildx)
    image = {"reference": "sglang:mine", "source": "build", "build": BUILD}
    result = host.run(image)
    assert (result["changed"], only(result)["action"]) == (True, "build")
    assert json.loads((host.home / "context.json").read_text()) == {"Dockerfile": "FROM base\n", "a.py": "print()\n"}
    (built,) = host.calls("buildx build" if buildx else "build ")
    assert built["buildkit"] == (None if buildx else "0")
    assert not Path(built["argv"][-1]).exists()
    assert host.run(image)["changed"] is False
    assert host.run(image | {"build": BUILD | {"inputs": "def"}})["changed"] is True


def test_a_build_that_fails_shows_its_last_lines(host: Host):
    build = BUILD | {"dockerfile": "FROM base\nRUN fails\n"}
    result = host.run({"reference": "sglang:mine", "source": "build", "build": build})
    assert result["failed"]
    assert "sgl_kernel has no code for capability 12.0" in result["msg"]
    assert "sgl_kernel has no code" in host.progress


def test_a_proxy_reaches_the_build_without_its_password_in_the_command(host: Host, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.example:3128")
    host.run({"reference": "sglang:mine", "source": "build", "build": BUILD})
    (built,) = host.calls("buildx build")
    assert "http_proxy" in built["argv"]
    assert "secret" not in (host.home / "calls").read_text()


def test_a_login_is_kept_apart_and_forgotten(host: Host):
    (host.home / ".docker").mkdir()
    own = host.home / ".docker/config.json"
    own.write_text(json.dumps({"credsStore": "desktop", "proxies": {"default": {}}}))
    before = own.read_text()
    host.publish()
    result = host.run(LOCKED, registry_username="lab", registry_password=PASSWORD)
    assert result["changed"]
    (pull,) = host.calls("pull")
    assert pull["auth"]
    assert not Path(pull["config"]).exists()
    assert own.read_text() == before
    everything = (host.home / "calls").read_text() + host.progress
    assert PASSWORD not in everything
    assert PASSWORD not in host.output.replace("VALUE_SPECIFIED_IN_NO_LOG_PARAMETER", "")


def test_a_refused_login_shows_no_password_and_pulls_nothing(host: Host):
    host.publish()
    result = host.run(LOCKED, registry_username="lab", registry_password="wrong one")
    assert result["failed"]
    assert "engine_image_registry_password" in result["msg"]
    assert "wrong one" not in host.output
    assert not host.calls("pull")
    assert not list((host.home / "tmp").rglob("docker-config-*"))


def test_no_login_where_everything_is_there(host: Host):
    host.publish()
    host.run(LOCKED)
    host.run(LOCKED, registry_username="lab", registry_password=PASSWORD)
    assert not host.calls("login")


def test_gpu_code_is_read_and_remembered(host: Host):
    host.publish()
    libraries = [{"name": "torch", "files": ["torch/lib/libtorch_cuda.so"]}]
    first = host.run(LOCKED | {"libraries": libraries})
    second = host.run(LOCKED | {"libraries": libraries})
    assert only(first)["libraries"][0]["codes"] == ["sm_120"]
    assert (only(second)["cuda"], only(second)["libraries"]) == ("12.9", only(first)["libraries"])
    assert len(host.calls("run")) == 1


POLICY = {"repositories": ["lmsysorg/sglang"], "keep": 0, "older_than_days": 0, "releases": "/nowhere"}
OLD = {"Metadata": {"LastTagTime": "2025-01-02T03:04:05.123456789Z"}}


def ids(host: Host) -> set[str]:
    return {image["Id"] for image in host.state["local"]}


def test_only_what_nothing_needs_is_removed(host: Host):
    host.publish()
    releases = host.home / "releases"
    (releases / "20261001T000000Z").mkdir(parents=True)
    (releases / "20261001T000000Z/plan.json").write_text(json.dumps({"services": [{"image": "lmsysorg/sglang:kept"}]}))
    needed = {name: f"sha256:{number:064x}" for number, name in enumerate(("running", "stopped", "kept", "other"), 100)}
    for name, identity in needed.items():
        repository = "debian" if name == "other" else "lmsysorg/sglang"
        host.have(identity, tags=[f"{repository}:{name}"], **OLD)
    both = "sha256:" + "b" * 64
    host.have(both, tags=["lmsysorg/sglang:shared", "somebody/else:1"], **OLD)
    host.have(OTHER_ID, tags=["lmsysorg/sglang:old"], digests=[f"lmsysorg/sglang@{OTHER_DIGEST}"], **OLD)
    built = "sha256:" + "c" * 64
    host.have(built, tags=["mine:1"], Config={"Labels": {"blackwell.serving.inputs": "x"}}, **OLD)
    host.write(
        containers=[
            {"Id": "c1", "Image": needed["running"], "Config": {"Image": "lmsysorg/sglang:running"}},
            {"Id": "c2", "Image": needed["stopped"], "Config": {"Image": "lmsysorg/sglang:stopped"}},
        ]
    )
    policy = POLICY | {"releases": str(releases)}
    host.run(LOCKED)
    foretold = host.run(LOCKED, prune=policy, check=True)
    assert {image["id"] for image in foretold["pruned"]} == {OTHER_ID, built}
    assert {OTHER_ID, built} <= ids(host)
    result = host.run(LOCKED, prune=policy)
    assert result["changed"]
    assert ids(host) == {ID, both, *needed.values()}
    assert not any("--force" in call["argv"] for call in host.calls("image rm"))
    assert host.run(LOCKED, prune=policy)["changed"] is False


def test_the_newest_and_the_young_stay(host: Host):
    for number in range(4):
        stamp = {"Metadata": {"LastTagTime": f"2025-01-0{number + 1}T00:00:00+09:00"}}
        host.have(f"sha256:{number:064x}", tags=[f"lmsysorg/sglang:{number}"], **stamp)
    host.publish()
    host.run(LOCKED, prune=POLICY | {"keep": 2, "older_than_days": 10**5})
    assert len(ids(host)) == 5
    host.run(LOCKED, prune=POLICY | {"keep": 2})
    assert ids(host) == {ID, f"sha256:{2:064x}", f"sha256:{3:064x}"}


def test_a_container_that_goes_meanwhile_holds_nothing_up_and_an_unknown_one_does(host: Host):
    host.publish()
    host.have(OTHER_ID, tags=["lmsysorg/sglang:old"], **OLD)
    image = {"Image": "sha256:" + "9" * 64, "Config": {}}
    host.write(containers=[{"Id": "going", **image}])
    assert host.run(LOCKED, prune=POLICY)["pruned"]
    assert not host.state["containers"]

    host.have(OTHER_ID, tags=["lmsysorg/sglang:old"], **OLD)
    host.write(containers=[{"Id": "silent", **image}])
    assert "does not tell" in host.run(LOCKED, prune=POLICY)["msg"]
    assert OTHER_ID in ids(host)


def test_nothing_is_removed_where_a_release_cannot_be_read(host: Host):
    host.publish()
    host.have(OTHER_ID, tags=["lmsysorg/sglang:old"], **OLD)
    (host.home / "releases/1").mkdir(parents=True)
    (host.home / "releases/1/plan.json").write_text("{")
    result = host.run(LOCKED, prune=POLICY | {"releases": str(host.home / "releases")})
    assert "plan.json cannot be read" in result["msg"]
    assert OTHER_ID in ids(host)


def test_check_mode_foretells_and_brings_nothing(host: Host):
    host.publish(layers={"a": 1})
    before = host.state
    build = {"reference": "sglang:mine", "source": "build", "build": BUILD}
    load = {"reference": "x:1", "source": "load", "archive": archive(host, ("x:1", OTHER_ID))}
    result = host.run(LOCKED, build, load, check=True, registry_username="lab", registry_password=PASSWORD)
    assert result["changed"]
    assert [image["action"] for image in result["images"]] == ["pull", "build", "load"]
    assert host.state == before
    assert DIGEST in result["diff"]["after"]
    for verb in ("pull", "load", "buildx build", "tag", "login"):
        assert not host.calls(verb)
    assert not (host.home / "progress").exists()


def test_a_host_without_docker_fails_and_in_check_mode_foretells(host: Host, monkeypatch):
    monkeypatch.setenv("PATH", str(host.home / "tmp"))
    image = LOCKED | {"libraries": [{"name": "torch", "files": ["x"]}]}
    foretold = host.run(image, check=True, prune=POLICY)
    assert (foretold["changed"], only(foretold)["action"], only(foretold)["present"]) == (True, "pull", False)
    assert "Docker does not answer: docker is not installed" in host.run(image)["msg"]


@pytest.fixture
def real_docker(monkeypatch) -> engine_images.image_store.Docker:
    docker = engine_images.image_store.Docker()
    if docker(["info"]).status != 0:
        pytest.skip("no Docker engine")
    return docker


def test_a_real_engine_loads_builds_and_removes(tmp_path: Path, real_docker, capsys):
    """A real Docker engine: an archive of a small image, a build on top of it, and their removal."""
    name = "blackwell-test-engine-images"
    (tmp_path / "hello").write_text("hello\n")
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(tmp_path / "hello", "hello")
    assert real_docker(["import", str(tmp_path / "root.tar"), f"{name}:base"]).status == 0
    identity = engine_images.image_store.inspect(real_docker, f"{name}:base")["Id"]
    host = Host(tmp_path, capsys)
    saved = tmp_path / "base.tar"
    try:
        assert real_docker(["save", "--output", str(saved), f"{name}:base"]).status == 0
        real_docker(["image", "rm", f"{name}:base"])
        base = {"reference": f"{name}:base", "source": "load", "archive": str(saved), "lock": {"id": identity}}
        dockerfile = f"FROM {name}:base\nCOPY file /file\n"
        spec = {"dockerfile": dockerfile, "files": {"file": "1"}, "inputs": "one", "recipe": "test"}
        built = {"reference": f"{name}:built", "source": "build", "build": spec}
        first = host.run(base, built)
        assert [image["action"] for image in first["images"]] == ["load", "build"]
        assert first["images"][0]["id"] == identity
        assert host.run(base, built)["changed"] is False

        wrong = host.run(base | {"lock": {"id": OTHER_ID}})
        assert identity in wrong["msg"]
        assert engine_images.image_store.inspect(real_docker, f"{name}:base")["Id"] == identity

        # Not by the module's policy, which knows no difference between these and what else this engine has.
        store = engine_images.image_store
        ours = [image for image in store.local_images(real_docker) if f"{name}:built" in image["RepoTags"]]
        assert store.ids_in_containers(real_docker).isdisjoint(image["Id"] for image in ours)
        now = datetime.datetime.now(datetime.UTC)
        (gone,) = store.prunable(ours, [], [name], 0, 0, now)
        assert 0 <= gone["age_days"] < 1
        assert store.remove(real_docker, gone) is None
        assert store.inspect(real_docker, f"{name}:built") is None
    finally:
        real_docker(["image", "rm", "--force", f"{name}:base", f"{name}:built"])
