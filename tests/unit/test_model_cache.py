"""The module with a fake docker CLI, and with a real engine, where a stand-in for huggingface_hub has a made-up Hub.

test_hub_download.py has the published huggingface_hub.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import hub_download, model_archive

STAND_IN = Path(__file__).parents[1] / "fixtures/huggingface_hub"
TOKEN = "hf_made-up-token-of-a-test"
IMAGE = "lab/engine:1"
COMMITS = {revision: hashlib.sha1(revision.encode()).hexdigest() for revision in ("main", "v2")}
FILES = {
    "config.json": 40,
    "tokenizer.json": 3000,
    "model.safetensors": 200_000,
    "pytorch_model.bin": 200_000,
    "original/consolidated.00.pth": 200_000,
    "model.Q4_K_M.gguf": 100_000,
    "README.md": 10,
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}
HUB = {
    "lab/tiny": {"revisions": COMMITS, "files": FILES},
    "lab/gated": {"revisions": COMMITS, "files": FILES, "gated": TOKEN},
}
# Knows volumes (directories in volumes/), images (names in images) and containers (files in containers/). `run` runs
# the script from its standard input with this Python, the stand-in, and the cache's real path.
FAKE_DOCKER = """
words = sys.argv[1:]
with open(home / "calls", "a") as calls:
    print(json.dumps(words), file=calls)
(home / "environments").open("a").write(json.dumps(dict(os.environ)))
if (home / "no-daemon").exists():
    sys.exit("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
containers = home / "containers"
def volume(name):
    return home / "volumes" / name / "_data"
if words[:2] == ["volume", "inspect"]:
    if not volume(words[2]).exists():
        sys.exit("Error: No such volume: " + words[2])
    options = {"type": "nfs"} if (home / "nfs").exists() else None
    print(json.dumps([{"Driver": "local", "Options": options, "Mountpoint": str(volume(words[2]))}]))
elif words[:2] == ["volume", "create"]:
    volume(words[-1]).mkdir(parents=True)
elif words[:2] == ["image", "inspect"]:
    if words[-1] not in (home / "images").read_text().split():
        sys.exit("Error: No such image: " + words[-1])
elif words[0] == "info":
    print(home)
elif words[0] == "ps":
    print("\\n".join(path.name for path in containers.iterdir()))
elif words[0] == "rm":
    for name in words[2:]:
        (containers / name).unlink()
elif words[0] == "run":
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if (containers / options["name"]).exists():
        sys.exit("Conflict. The container name is already in use")
    mount = dict(part.split("=") for part in options["mount"].split(","))
    source = mount["source"] if mount["type"] == "bind" else str(volume(mount["source"]))
    (containers / options["name"]).touch()
    script = sys.stdin.read().replace(mount["target"], source)
    done = subprocess.run([sys.executable, "-"], input=script, text=True, env={"PYTHONPATH": str(home / "python")})
    if not (home / "killed").exists():
        (containers / options["name"]).unlink()
    sys.exit(done.returncode)
else:
    sys.exit("the fake docker does not know " + " ".join(words))
"""


class Host:
    """A host with the fake docker."""

    def __init__(self, home: Path, run_module: Callable[..., dict]) -> None:
        self.home, self.run_module = home, run_module
        self.cache = home / "volumes/serving_huggingface-cache/_data"

    def run(self, *models: dict, check: bool = False, **options) -> dict:
        arguments = {
            "models": [{"image": IMAGE, **model} for model in models or [{"name": "lab/tiny"}]],
            "retries": 0,
            "min_free_bytes": 0,
            **({} if "path" in options else {"project": "serving", "volume": "huggingface-cache"}),
            **options,
        }
        environment = {"PATH": f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        return self.run_module("model_cache", check=check, environment=environment, **arguments)

    @property
    def calls(self) -> list[list[str]]:
        file = self.home / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def runs(self) -> list[list[str]]:
        return [call for call in self.calls if call[0] == "run"]

    @property
    def transferred(self) -> list[str]:
        """What the stand-in downloaded, a line per attempt at a file."""
        file = self.cache / "transferred"
        return file.read_text().splitlines() if file.exists() else []

    def snapshot(self, name: str = "lab/tiny", revision: str = "main") -> Path:
        return Path(hub_download.repository(self.cache, name), "snapshots", COMMITS[revision])


@pytest.fixture
def host(tmp_path: Path, run_module) -> Host:
    home = tmp_path / "host"
    for directory in ("bin", "containers", "volumes", "python"):
        (home / directory).mkdir(parents=True)
    docker = home / "bin/docker"
    docker.write_text(
        f"#!{sys.executable}\nimport json, os, subprocess, sys\nfrom pathlib import Path\nhome = Path({str(home)!r})\n"
        + FAKE_DOCKER
    )
    docker.chmod(0o755)
    (home / "images").write_text(IMAGE)
    shutil.copytree(STAND_IN, home / "python/huggingface_hub")
    (home / "python/huggingface_hub/hub.json").write_text(json.dumps(HUB))
    return Host(home, run_module)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_model_is_fetched_once(host: Host):
    first = host.run()
    assert first["changed"], first
    assert first["models"] == [
        {
            "name": "lab/tiny",
            "revision": "main",
            "state": "fetched",
            "commit": COMMITS["main"],
            "bytes": sum(FILES[file] for file in NEEDED),
            "downloaded": sum(FILES[file] for file in NEEDED),
        }
    ]
    assert set(contents(host.snapshot())) == NEEDED
    assert Path(hub_download.repository(host.cache, "lab/tiny"), "refs/main").read_text() == COMMITS["main"]

    before = contents(host.cache)
    second = host.run()
    assert (second["changed"], second["models"][0]["state"]) == (False, "present")
    assert len(host.runs) == 1
    assert contents(host.cache) == before


def test_two_services_with_one_model_fetch_it_once(host: Host):
    result = host.run({"name": "lab/tiny"}, {"name": "lab/tiny"}, {"name": "lab/tiny", "revision": "v2"})
    assert [(model["revision"], model["state"]) for model in result["models"]] == [
        ("main", "fetched"),
        ("v2", "fetched"),
    ]
    assert result["models"][1]["downloaded"] > 0
    assert len(host.runs) == 2
    assert len(host.transferred) == len(NEEDED)  # the files of v2 are the same blobs


def test_the_volume_carries_the_labels_by_which_compose_knows_it(host: Host):
    host.run()
    (created,) = [call for call in host.calls if call[:2] == ["volume", "create"]]
    assert set(created[2:]) == {
        "--label=com.docker.compose.project=serving",
        "--label=com.docker.compose.volume=huggingface-cache",
        "serving_huggingface-cache",
    }


def test_the_container_has_no_gpu_and_no_capabilities(host: Host):
    host.run()
    (run,) = host.runs
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges", "--pull=never", "--rm"} <= set(run)
    assert not [word for word in run if word.startswith(("--gpus", "--device", "--runtime", "--privileged"))]
    assert "--env=NVIDIA_VISIBLE_DEVICES=void" in run


@pytest.mark.parametrize("damage", ["file", "size", "ref", "marker"])
def test_what_is_no_longer_whole_is_fetched_again(host: Host, damage: str):
    host.run()
    file = host.snapshot() / "model.safetensors"
    if damage == "file":
        file.resolve().unlink()
    elif damage == "size":
        file.write_bytes(b"short")
    elif damage == "ref":
        Path(hub_download.repository(host.cache, "lab/tiny"), "refs/main").write_text(COMMITS["v2"])
    else:
        Path(hub_download.marker_path(host.cache, "lab/tiny", "main")).unlink()
    result = host.run()
    assert (result["changed"], result["models"][0]["state"]) == (True, "fetched")
    assert host.run()["changed"] is False


def test_an_interrupted_download_goes_on(host: Host):
    host.run({"name": "lab/gated"}, token="wrong")  # makes the volume
    (host.cache / "break").touch()
    broken = host.run()
    assert broken["failed"]
    assert "next run goes on from there" in broken["msg"]
    assert host.transferred == ["40 of 40"]
    (host.cache / "break").unlink()
    result = host.run()
    assert result["models"][0]["state"] == "fetched"
    assert host.transferred[1] == "20 of 40"
    assert contents(host.snapshot())["config.json"] == json.dumps(("config.json" * 4)[:38]).encode()


def test_a_fault_of_the_network_is_tried_again_in_the_same_container(host: Host):
    host.run({"name": "lab/gated"}, token="wrong")
    (host.cache / "down").touch()
    with subprocess.Popen(["sh", "-c", f"sleep 2; rm {host.cache / 'down'}"]):
        result = host.run(retries=1)
    assert result["models"][0]["state"] == "fetched"
    assert len(host.runs) == 2  # the first was of the gated model


def test_the_container_of_an_interrupted_run_is_removed(host: Host):
    (host.home / "killed").touch()  # as if nobody had been left to remove it
    host.run()
    (run,) = host.runs
    name = next(word.partition("=")[2] for word in run if word.startswith("--name="))
    (host.home / "killed").unlink()
    (host.home / "containers" / name).touch()
    shutil.rmtree(host.cache / "blackwell-serving")
    assert host.run()["changed"]
    assert ["rm", "--force", name] in host.calls
    assert not list((host.home / "containers").iterdir())


def test_what_takes_too_long_is_ended(host: Host):
    host.run({"name": "lab/gated"}, token="wrong")
    (host.cache / "hang").touch()
    result = host.run(timeout=1)
    assert result["failed"]
    assert "longer than 1 seconds" in result["msg"]
    assert not list((host.home / "containers").iterdir())


def test_a_gated_model_without_a_token(host: Host):
    result = host.run({"name": "lab/gated"})
    assert result["failed"]
    assert "https://huggingface.co/lab/gated" in result["msg"]
    assert "serving_stack_huggingface_token" in result["msg"]
    known = host.run({"name": "lab/gated", "gated": True})
    assert known["msg"] in result["msg"]
    assert len(host.runs) == 1  # what is known needs no container


def test_a_gated_model_with_a_token_that_has_no_access(host: Host):
    result = host.run({"name": "lab/gated"}, token="hf_of-somebody-else")
    assert "has no access" in result["msg"]
    assert "hf_of-somebody-else" not in json.dumps(result)


def test_the_token_is_seen_by_nobody(host: Host):
    result = host.run({"name": "lab/gated"}, token=TOKEN, proxy="http://user:pass-word@proxy.example:3128")
    assert result["models"][0]["state"] == "fetched"
    seen = json.dumps(result) + (host.home / "calls").read_text() + (host.home / "environments").read_text()
    files = b"".join(contents(host.home).values())
    for secret in (TOKEN, "pass-word"):
        assert secret not in seen
        assert files.replace(json.dumps(HUB).encode(), b"").find(secret.encode()) == -1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "lab/none"}, "https://huggingface.co/lab/none does not exist"),
        ({"name": "lab/tiny", "revision": "v9"}, "no revision v9"),
        ({"name": "lab/tiny", "image": "lab/absent:1"}, "lab/absent:1"),
        ({"name": "lab/tiny; true"}, "not the name"),
        ({"name": "lab/tiny", "revision": "../../x"}, "not the name"),
        ({"name": "lab/tiny", "image": None}, "image is missing"),
    ],
)
def test_what_cannot_be_fetched_is_said(host: Host, model: dict, expected: str):
    result = host.run(model)
    assert result["failed"]
    assert expected in result["msg"]
    assert not host.transferred


def test_a_disk_that_is_too_small_by_the_estimate_starts_no_container(host: Host):
    result = host.run({"name": "lab/tiny", "size_bytes": 2**60})
    assert result["failed"]
    assert "lab/tiny 1073741824.00 GiB" in result["msg"]
    assert "Nothing was downloaded" in result["msg"]
    assert not host.runs


def test_a_disk_that_is_too_small_for_the_real_size_downloads_nothing(host: Host):
    result = host.run(min_free_bytes=2**60)
    assert result["failed"]
    assert "needs 0.00 GiB more" in result["msg"]
    assert not host.transferred


def test_a_disk_that_fills_meanwhile(host: Host):
    host.run({"name": "lab/gated"}, token="wrong")
    (host.cache / "full").touch()
    assert "disk is full" in host.run()["msg"]


def test_a_cache_that_was_filled_elsewhere_serves_without_the_hub(host: Host):
    host.run()
    shutil.rmtree(host.cache / "blackwell-serving")
    (host.cache / "down").touch()
    result = host.run()
    assert result["models"][0]["state"] == "adopted"
    assert "taken as it is" in json.dumps(result["warnings"])
    assert host.run()["changed"] is False

    shutil.rmtree(host.cache / "blackwell-serving")
    (host.snapshot() / "model.safetensors").unlink()
    assert host.run()["failed"]


@pytest.fixture
def brought(host: Host, tmp_path: Path) -> Path:
    """A directory of models as a bundle lays them out, taken from a cache that is gone since."""
    host.run()
    directory = tmp_path / "bundle"
    model_archive.ModelArchive(str(directory), "lab/tiny", "main").take_from(str(host.cache))
    shutil.rmtree(host.cache / "hub")
    return directory


def test_a_model_of_a_bundle_is_moved_into_the_cache(host: Host, brought: Path):
    (host.home / "calls").unlink()
    foretold = host.run(check=True, directory=str(brought))
    assert (foretold["changed"], contents(brought) != {}) == (True, True)
    first = host.run(directory=str(brought))
    assert [(model["state"], model["commit"]) for model in first["models"]] == [("placed", COMMITS["main"])]
    assert set(contents(host.snapshot())) == NEEDED
    assert contents(brought) == {}
    again = host.run(directory=str(brought))
    assert (again["changed"], again["models"][0]["state"], host.runs) == (False, "present", [])


def test_a_model_that_the_bundle_lacks_is_fetched(host: Host, brought: Path):
    result = host.run({"name": "lab/tiny"}, {"name": "lab/tiny", "revision": "v2"}, directory=str(brought))
    assert [model["state"] for model in result["models"]] == ["placed", "fetched"]


def test_a_damaged_model_of_a_bundle_is_refused(host: Host, brought: Path):
    next(path for path in brought.rglob("*.safetensors")).write_bytes(b"short")
    result = host.run(directory=str(brought))
    assert result["failed"]
    assert "lab/tiny of the bundle cannot be moved" in result["msg"]
    assert "its files are not those that its marker names" in result["msg"]


def test_check_mode_foretells_and_leaves_everything(host: Host):
    predicted = host.run({"name": "lab/tiny", "size_bytes": 5}, check=True)
    assert (predicted["changed"], predicted["models"][0]["state"], predicted["needed_bytes"]) == (True, "missing", 5)
    assert not host.runs
    assert not host.cache.exists()
    host.run()
    assert host.run(check=True)["changed"] is False


@pytest.mark.parametrize("lack", ["docker", "daemon"])
def test_check_mode_on_a_host_without_docker(host: Host, lack: str):
    if lack == "docker":
        (host.home / "bin/docker").unlink()
        (host.home / "bin/docker").symlink_to("/nowhere")
    else:
        (host.home / "no-daemon").touch()
    result = host.run(check=True)
    assert not result.get("failed"), result
    assert result["models"][0]["state"] == "missing"


def test_without_a_daemon_nothing_is_fetched(host: Host):
    (host.home / "no-daemon").touch()
    assert "Cannot connect to the Docker daemon" in host.run()["msg"]


def test_a_volume_that_the_host_cannot_read_is_looked_at_from_a_container(host: Host):
    (host.home / "nfs").touch()
    assert host.run()["models"][0]["state"] == "fetched"
    predicted = host.run(check=True)
    assert (predicted["changed"], predicted["models"][0]["state"]) == (False, "unknown")
    again = host.run()
    assert (again["changed"], again["models"][0]["state"]) == (False, "present")
    assert len(host.runs) == 2


def test_a_directory_of_the_host_as_cache(host: Host, tmp_path: Path):
    host.cache = tmp_path / "models"
    result = host.run(path=str(host.cache))
    assert result["models"][0]["state"] == "fetched"
    assert set(contents(host.snapshot())) == NEEDED
    assert f"--user={os.getuid()}:{os.getgid()}" in host.runs[0]
    assert host.run(path=str(host.cache))["changed"] is False


def local_model(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")


def test_a_local_model_is_only_looked_at(host: Host, tmp_path: Path):
    local_model(tmp_path / "own")
    result = host.run({"name": "own", "directory": str(tmp_path / "own")})
    assert (result["changed"], result["models"][0]["state"]) == (False, "local")
    assert not host.calls


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda model: shutil.rmtree(model), "is not a directory"),
        (lambda model: (model / "config.json").unlink(), "config.json: No such file"),
        (lambda model: (model / "config.json").write_text("{"), "config.json"),
        (lambda model: (model / "model.safetensors").unlink(), "holds no weights"),
        (lambda model: (model / "model.safetensors").write_bytes(b""), "empty model.safetensors"),
        (
            lambda model: (model / hub_download.INDEX).write_text('{"weight_map": {"a": "model-00001.safetensors"}}'),
            "model-00001.safetensors: No such file",
        ),
    ],
)
def test_a_local_model_that_no_engine_could_load(host: Host, tmp_path: Path, damage, expected: str):
    local_model(tmp_path / "own")
    damage(tmp_path / "own")
    result = host.run({"name": "own", "directory": str(tmp_path / "own")})
    assert result["failed"]
    assert expected in result["msg"]
    assert host.run({"name": "own", "directory": str(tmp_path / "own")}, check=True)["warnings"]


@pytest.fixture(scope="module")
def docker() -> Callable[..., str]:
    """The real docker CLI; returns what it says."""

    def run(*words: str, **options) -> str:
        return subprocess.run(["docker", *words], capture_output=True, check=True, **options).stdout.decode().strip()

    try:
        run("version", "--format={{.Server.Version}}", timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Docker engine on this machine")
    return run


@pytest.fixture(scope="module")
def engine_image(docker, tmp_path_factory) -> str:
    """A small image: this Python with the libraries that it is linked to, and the stand-in for huggingface_hub."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    python, library = os.path.realpath(sys.executable), sysconfig.get_path("stdlib")
    left_out = ("test", "site-packages", "__pycache__", "idlelib", "tkinter", "ensurepip", "lib2to3")
    linked = set()
    for file in [python, *Path(library, "lib-dynload").glob("*.so")]:
        said = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
        linked |= {word for word in said.split() if word.startswith("/")}
    with tarfile.open(archive, "w") as tar:

        def add(name: str, text: str) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))

        for file in [python, *linked]:
            with open(file, "rb") as stream:
                entry = tarfile.TarInfo(file.lstrip("/"))
                entry.size, entry.mode = os.stat(file).st_size, 0o755
                tar.addfile(entry, stream)
        tar.add(library, library.lstrip("/"), filter=lambda e: None if e.name.endswith(left_out) else e)
        add("opt/stand-in/huggingface_hub/__init__.py", (STAND_IN / "__init__.py").read_text())
        add("opt/stand-in/huggingface_hub/hub.json", json.dumps(HUB))
        for directory in ("tmp", "cache"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, python
        tar.addfile(link)
    name = f"model-cache-test:{uuid.uuid4().hex[:8]}"
    docker("import", "--change=ENV PYTHONPATH=/opt/stand-in PATH=/usr/bin", str(archive), name)
    archive.unlink()
    yield name
    docker("rmi", "--force", name)


def test_in_a_real_container(docker, engine_image: str, run_module, docker_compose, tmp_path: Path):
    project = f"model-cache-test-{uuid.uuid4().hex[:8]}"
    model = {"name": "lab/gated", "image": engine_image}
    arguments = {
        "models": [model],
        "project": project,
        "volume": "huggingface-cache",
        "retries": 0,
        "min_free_bytes": 0,
    }
    try:
        assert run_module("model_cache", check=True, **arguments)["models"][0]["state"] == "missing"
        refused = run_module("model_cache", **arguments)
        assert "gated" in refused["msg"], refused
        first = run_module("model_cache", **arguments, token=TOKEN)
        assert first["models"][0]["state"] == "fetched", first
        second = run_module("model_cache", **arguments)
        assert (second["changed"], second["models"][0]["state"]) == (False, "present")
        (tmp_path / "compose.yaml").write_text(
            f"name: {project}\nservices:\n  a:\n    image: {engine_image}\n    command: [x]\n"
            "    volumes: [huggingface-cache:/c]\nvolumes:\n  huggingface-cache:\n"
        )
        said = subprocess.run(
            [*docker_compose, "up", "--no-start"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert "not created by Docker Compose" not in said.stdout + said.stderr
        assert "created for project" not in said.stdout + said.stderr
        subprocess.run([*docker_compose, "down", "--volumes"], cwd=tmp_path, capture_output=True, check=True)
        assert project not in docker("volume", "ls", "--quiet")
    finally:
        subprocess.run(
            ["docker", "volume", "rm", "--force", f"{project}_huggingface-cache"], capture_output=True, check=False
        )


def test_a_real_container_that_is_killed_goes_on_and_shows_no_token(
    docker, engine_image: str, run_module, tmp_path: Path
):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "hang").touch()
    events = subprocess.Popen(
        ["docker", "events", "--format={{json .}}", f"--filter=image={engine_image}"], stdout=subprocess.PIPE, text=True
    )
    arguments = {"path": str(cache), "models": [{"name": "lab/gated", "image": engine_image}], "min_free_bytes": 0}
    arguments_file = tmp_path / "killed.json"
    arguments_file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments | {"token": TOKEN}}))
    module = "ansible_collections.blackwell.serving.plugins.modules.model_cache"
    path = str(Path(__file__).parents[2] / ".collections")
    process = subprocess.Popen([sys.executable, "-m", module, arguments_file], env={**os.environ, "PYTHONPATH": path})
    try:
        while True:  # until the container hangs in its download
            event = json.loads(events.stdout.readline())
            if event["status"] == "start":
                break
        inspected = docker("inspect", event["id"])
        assert TOKEN not in inspected
        assert json.loads(inspected)[0]["HostConfig"]["CapDrop"] == ["ALL"]
        wait_for(lambda: list(cache.glob("hub/*/blobs/*.incomplete")))
        second = run_module("model_cache", **arguments)
        assert "Another run downloads" in second["msg"]
        process.kill()  # no time to remove the container
        process.wait()
        assert docker("ps", "--quiet", "--no-trunc", f"--filter=id={event['id']}") == event["id"]
        (cache / "hang").unlink()
        result = run_module("model_cache", **arguments, token=TOKEN)
        assert result["models"][0]["state"] == "fetched", result
        assert not docker("ps", "--all", "--quiet", f"--filter=id={event['id']}")
        assert (cache / "transferred").read_text().splitlines()[:2] == ["40 of 40", "20 of 40"]
        assert TOKEN not in json.dumps(result)
    finally:
        events.kill()
        events.wait()
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen within 30 seconds")


def test_as_ansible_sends_it(host: Host, run_tool):
    """In one archive, from which the module takes the script for the container."""
    arguments = {
        "models": [{"name": "lab/tiny", "image": IMAGE}],
        "path": str(host.home / "cache"),
        "min_free_bytes": 0,
    }
    done = run_tool(
        *("ansible", "localhost", "--module-name=blackwell.serving.model_cache", "--connection=local"),
        *("--inventory=localhost,", f"--extra-vars=ansible_python_interpreter={sys.executable}"),
        f"--args={json.dumps(arguments)}",
        env={"PATH": f"{host.home / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert '"state": "fetched"' in done.stdout or "state: fetched" in done.stdout, done.stdout + done.stderr
