"""hub_download with the published huggingface_hub, which talks to a stand-in for the Hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import hub_download

TOKEN = "hf_made-up-token-of-a-test"
COMMIT = "5c1d1a4b0e9f4a1a8f8b8f7f0c7b3c5e2d9a6b41"
WEIGHTS = b"weights " * 1000
LARGE = WEIGHTS * 4000  # larger than the pieces that huggingface_hub writes
FILES = {
    "config.json": b'{"model_type": "made up"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": LARGE,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "consolidated.safetensors": WEIGHTS[1:],
    "pytorch_model.bin": WEIGHTS[2:],
}
NEEDED = {name for name in FILES if name.startswith(("config", "model"))}


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hub's HTTP interface that a download needs. `lab/gated` wants the token."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = self.path.partition("?")[0].strip("/").split("/")
        if words[:2] == ["api", "models"]:
            self.api("/".join(words[2:4]), words[4:])
        else:
            self.file("/".join(words[:2]), "/".join(words[4:]))

    def allowed(self, name: str) -> bool:
        if name not in ("lab/open", "lab/gated"):
            self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return False
        if name == "lab/gated" and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, X_Error_Code="GatedRepo", X_Error_Message="Access to model lab/gated is restricted.")
            return False
        return True

    def api(self, name: str, words: list[str]) -> None:
        if not self.allowed(name):
            return
        if words[1] not in ("main", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            return
        files = [{"rfilename": file, "size": len(data), "blobId": "0"} for file, data in FILES.items()]
        tree = [{"type": "file", "path": f, "size": len(data), "oid": "0"} for f, data in FILES.items()]
        answer = tree if words[0] == "tree" else {"id": name, "sha": COMMIT, "siblings": files}
        self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def file(self, name: str, file: str) -> None:
        if not self.allowed(name):
            return
        data, start = FILES[file], 0
        identity = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if asked := self.headers["Range"]:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            identity["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET":
            self.server.served.append((file, start))
        if self.command == "GET" and file == self.server.breaks:
            self.server.breaks = None
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), **identity}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.server.part_sent.set()
            self.server.go_on.wait(60)
            self.close_connection = True
            return
        self.answer(206 if asked else 200, data[start:], **identity)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.served, server.breaks = [], None
    server.part_sent, server.go_on = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


# Without the command `hf`, with it, the last that goes on within a file, and one that begins a file anew.
@pytest.fixture(scope="module", params=["0.30.2", "0.34.4", "1.17.0", "2.4.0"])
def packages(request, tmp_path_factory) -> Path:
    """A directory with huggingface_hub from PyPI."""
    target = tmp_path_factory.mktemp("packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", target, f"huggingface_hub=={request.param}"],
        check=True,
    )
    return target


@pytest.fixture
def start(packages: Path, tmp_path: Path, hub):
    """Start a download as model_cache starts it in a container."""

    def run(name: str, token: str = "", revision: str = "main", endpoint: str = "") -> subprocess.Popen[str]:
        environment = {
            "HF_HOME": str(tmp_path),
            "HF_HUB_CACHE": f"{tmp_path}/hub",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_ENDPOINT": endpoint or f"http://127.0.0.1:{hub.server_port}",
            "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        }
        parameters = {"home": str(tmp_path), "name": name, "revision": revision, "environment": environment}
        parameters |= {"min_free_bytes": 0, "retries": 0}
        script = f"{Path(hub_download.__file__).read_text()}\nmain(json.loads({json.dumps(parameters)!r}))\n"
        process = subprocess.Popen(
            [sys.executable, "-"],
            env={"PYTHONPATH": str(packages), "PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(script)
        process.stdin.close()
        process.stdin = None
        return process

    return run


def result_of(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=120)
    assert out, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.package_index
def test_download_resume_and_errors(start, packages: Path, hub, tmp_path: Path):
    assert result_of(start("lab/gated"))["state"] == "gated"
    assert result_of(start("lab/none"))["state"] == "missing"
    assert result_of(start("lab/open", revision="v9"))["state"] == "revision"
    assert result_of(start("lab/open", endpoint="http://127.0.0.1:9"))["state"] == "network"
    assert not list(tmp_path.rglob("*.safetensors"))

    hub.breaks = "model-00002-of-00002.safetensors"
    process = start("lab/gated", TOKEN)
    assert hub.part_sent.wait(60)
    while hub_download.unfinished_bytes(tmp_path, "lab/gated") < 2**20:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert hub_download.complete(tmp_path, "lab/gated", "main") is None
    assert hub_download.looks_complete(tmp_path, "lab/gated", "main") is None

    hub.served.clear()
    result = result_of(start("lab/gated", TOKEN))
    assert result["state"] == "fetched", result
    assert result["bytes"] == sum(len(FILES[name]) for name in NEEDED)
    snapshot = Path(hub_download.repository(tmp_path, "lab/gated"), "snapshots", COMMIT)
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {name: FILES[name] for name in NEEDED}
    goes_on = not list(packages.glob("huggingface_hub-2*"))
    assert (dict(hub.served)["model-00002-of-00002.safetensors"] > 0) == goes_on
    assert not hub_download.blobs(tmp_path, "lab/gated", "*.incomplete")

    hub.served.clear()
    assert result_of(start("lab/gated"))["state"] == "present"
    assert not hub.served


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "README.md"], ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin", "training_args.bin"], ["config.json", "pytorch_model.bin"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
        (["consolidated.safetensors", "model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors"]),
        (["original/model.safetensors", "model.safetensors", "a.gguf"], ["model.safetensors"]),
        (["tokenizer.model", "vocab.txt", "modeling_x.py"], ["modeling_x.py", "tokenizer.model", "vocab.txt"]),
    ],
)
def test_only_the_files_that_engines_read(names: list[str], needed: list[str]):
    assert hub_download.needed_files(names) == needed
