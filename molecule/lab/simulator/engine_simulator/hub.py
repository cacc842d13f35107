"""A simulated Hugging Face hub: a few small files in huggingface_hub's cache layout, no network.

It has the models of sizes.yml. Gated ones need a token, which must begin with "hf_".
"""

import fcntl
import hashlib
import json
import os
import sys
import uuid
from pathlib import Path

from . import machine

HUB = "https://huggingface.co"
CHUNK = 64 * 1024


class HubError(Exception):
    """The hub's answer, as huggingface_hub words it (utils/_http.py, 1.0.0)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def as_engine_says(self, path: str) -> str:
        """transformers/utils/hub.py"""
        if self.kind == "GatedRepoError":
            return (
                f"You are trying to access a gated repo.\nMake sure to have access to it at {HUB}/{path}.\n"
                f"401 Client Error. {self}"
            )
        if self.kind == "LocalEntryNotFoundError":
            return (
                f"We couldn't connect to '{HUB}' to load the files, and couldn't find them in the cached files.\n"
                "Check your internet connection or see how to run the library in offline mode at "
                "'https://huggingface.co/docs/transformers/installation#offline-mode'."
            )
        return (
            f"{path} is not a local folder and is not a valid model identifier listed on '{HUB}/models'\nIf this is a "
            "private "
            "repository, make sure to pass a token having permission to this repo either by logging in with `hf auth "
            "login` or "
            "by passing `token=<your_token>`"
        )


def home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("HF_HOME", f"{cache}/huggingface"))


def cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or home() / "hub")


def token() -> str | None:
    if value := os.environ.get("HF_TOKEN"):
        return value
    path = Path(os.environ.get("HF_TOKEN_PATH") or home() / "token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def name_of(path: str) -> str:
    """The model at a path: a local snapshot's config.json says which."""
    config = machine.read_json(Path(path) / "config.json") if os.path.isdir(path) else {}
    return config.get("_name_or_path", path)


def files_of(name: str, model: dict) -> dict[str, bytes]:
    """Small stand-ins for a repository's files."""
    config = {
        "_name_or_path": name,
        "architectures": [model["architecture"]],
        "max_position_embeddings": model["max_context"],
        "num_hidden_layers": model["layers"],
        "simulated": True,
    }
    weights = b"simulated weights of " + name.encode() + b"\n"
    return {
        "config.json": json.dumps(config, indent=2).encode(),
        "tokenizer_config.json": b'{"simulated": true}\n',
        "model.safetensors": weights * (4 * CHUNK // len(weights)),
    }


def commit_of(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()  # made up: the real commits are not known here


def fetch(name: str, revision: str = "main", quiet: bool = False) -> Path:
    """The snapshot's directory, fetched unless it is whole in the cache. Raises HubError."""
    model = machine.image()["sizes"]["models"].get(name)
    root = cache() / f"models--{name.replace('/', '--')}"
    commit = commit_of(name)
    snapshot = root / "snapshots" / commit
    if model and all((snapshot / file).exists() for file in files_of(name, model)):
        return snapshot
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise HubError(
            "LocalEntryNotFoundError", "Cannot find an appropriate cached snapshot folder for the specified revision"
        )
    check(name, model, revision, commit)
    for directory in (root / "blobs", root / "refs", snapshot, cache() / ".locks" / root.name):
        directory.mkdir(parents=True, exist_ok=True)
    for file, content in files_of(name, model).items():
        fetch_file(root, snapshot, file, content, quiet)
    if revision != commit:
        (root / "refs" / revision).write_text(commit)
    return snapshot


def check(name: str, model: dict | None, revision: str, commit: str) -> None:
    request = f"(Request ID: Root=1-simulated-{uuid.uuid4().hex[:24]})"
    if model is None:
        raise HubError(
            "RepositoryNotFoundError",
            f"401 Client Error. {request}\n\nRepository Not Found for url: "
            f"{HUB}/api/models/{name}/revision/{revision}.\nPlease make "
            "sure you specified the correct `repo_id` and `repo_type`.\nIf you are trying to access a private or gated "
            "repo, make "
            f"sure you are authenticated. For more details, see {HUB}/docs/huggingface_hub/authentication\n"
            "Invalid username or password.",
        )
    if revision not in ("main", commit):
        raise HubError(
            "RevisionNotFoundError",
            f"404 Client Error. {request}\n\nRevision Not Found for url: "
            f"{HUB}/api/models/{name}/revision/{revision}.\n\n"
            f"Invalid rev id: {revision}",
        )
    if model.get("gated") and not (token() or "").startswith("hf_"):
        raise HubError(
            "GatedRepoError",
            f"401 Client Error. {request}\n\nCannot access gated repo for url "
            f"{HUB}/{name}/resolve/{commit}/config.json.\nAccess to "
            f"model {name} is restricted. You must have access to it and be authenticated to access it. Please log in.",
        )


def fetch_file(root: Path, snapshot: Path, file: str, content: bytes, quiet: bool) -> None:
    """As file_download.py does it: lock, blobs/<etag>.incomplete that a later run continues, then a link."""
    etag = hashlib.sha256(content).hexdigest()
    blob = root / "blobs" / etag
    with (cache() / ".locks" / root.name / f"{etag}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not blob.exists():
            incomplete = blob.with_name(f"{etag}.incomplete")
            with incomplete.open("ab") as part:
                while part.tell() < len(content):
                    part.write(content[part.tell() : part.tell() + CHUNK])
                    part.flush()
                    machine.rest(0.1)
            incomplete.rename(blob)
        link = snapshot / file
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(blob, link.parent))
    if not quiet:
        print(f"{file}: 100%", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """`hf download MODEL [--revision R] [--cache-dir D] [--token T] [--quiet]`, `hf auth whoami`, `hf version`."""
    import argparse

    parser = argparse.ArgumentParser(prog="hf")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version")
    download = commands.add_parser("download")
    download.add_argument("repo_id")
    download.add_argument("filenames", nargs="*")
    download.add_argument("--revision", default="main")
    download.add_argument("--cache-dir")
    download.add_argument("--token")
    download.add_argument("--repo-type", default="model")
    download.add_argument("--include", action="append")
    download.add_argument("--exclude", action="append")
    download.add_argument("--max-workers", type=int)
    download.add_argument("--quiet", "-q", action="store_true")
    options = parser.parse_args(words)
    if options.command == "version":
        print("huggingface_hub version: 1.0.0 (simulated)")
        return 0
    if options.cache_dir:
        os.environ["HF_HUB_CACHE"] = options.cache_dir
    if options.token:
        os.environ["HF_TOKEN"] = options.token
    try:
        print(fetch(options.repo_id, options.revision, options.quiet))
    except HubError as problem:
        print(f"Traceback (most recent call last):\nhuggingface_hub.errors.{problem.kind}: {problem}", file=sys.stderr)
        return 1
    return 0
