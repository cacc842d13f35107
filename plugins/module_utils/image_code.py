"""Which GPU code a container image on this host holds, read without starting its engine and without a GPU.

Runs under the host's own Python, 3.9 or newer.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

from . import cuda_fatbin
from .host_facts.host import Output

Docker = Callable[..., Output]
"""`docker(arguments, stdin=None, timeout=...)` runs the command line program; `status` is None where it did not run."""

FORMAT = 1
LOOK_SECONDS = 60
READ_SECONDS = 900
# A container that can do nothing but read. NVIDIA's runtime, where it is the default one, gives it no GPU.
CONFINED = [
    *("--rm", "--interactive", "--pull", "never", "--network", "none", "--read-only", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--log-driver", "none", "--env", "NVIDIA_VISIBLE_DEVICES=void"),
]
NOT_STARTED = (126, 127)  # the image's python3 cannot be run, or is not there
PYTHONS = range(8, 16)
PACKAGE_FOLDERS = [
    *(f"usr/local/lib/python3.{minor}/{kind}-packages" for minor in PYTHONS for kind in ("site", "dist")),
    "usr/lib/python3/dist-packages",
    *(
        f"{prefix}/lib/python3.{minor}/site-packages"
        for prefix in ("opt/venv", "opt/conda", "opt/sglang", "opt/vllm", "root/.venv")
        for minor in PYTHONS
    ),
]


class ImageUnreadable(Exception):
    """The image cannot be looked into; the message names it and says why."""


def read_image(
    docker: Docker, reference: str, libraries: list[dict[str, Any]], cache: str | None = None
) -> dict[str, Any]:
    """What the image is and which code its `libraries` ({name, files}) hold; a library that is not there has path None.

    The code is remembered in the file `cache` by the image's id, so that a second look starts no container.
    """
    image = _inspect(docker, reference)
    wanted = [{"name": library["name"], "files": list(library["files"])} for library in libraries]
    question = json.dumps([FORMAT, image["id"], wanted], sort_keys=True)
    known = _remembered(cache)
    answer = known.get(image["id"], {})
    if answer.get("question") != question:
        read = _ask_python(docker, image, wanted) or _copy_out(docker, image, wanted)
        answer = {"question": question, **read}
        unreadable = [found for found in read["libraries"] if found.get("error")]
        if unreadable:
            raise ImageUnreadable(
                f"{reference}: {unreadable[0]['path']} is no library that can be read: {unreadable[0]['error']}"
            )
        _remember(cache, {**known, image["id"]: answer})
    image["cuda"] = answer["torch"].get("cuda") or _major_minor(image.pop("environment").get("CUDA_VERSION"))
    image.pop("environment", None)
    image["torch"] = answer["torch"].get("version")
    image["libraries"] = answer["libraries"]
    return image


def _inspect(docker: Docker, reference: str) -> dict[str, Any]:
    asked = docker(["image", "inspect", reference], timeout=LOOK_SECONDS)
    if asked.status is None:
        raise ImageUnreadable(f"{reference}: Docker cannot be asked: {asked.stderr.strip()}")
    if asked.status:
        said = asked.stderr.strip()
        if "no such image" in said.lower():
            raise ImageUnreadable(f"{reference} is not on this host; pull, build or load it first")
        raise ImageUnreadable(f"{reference}: docker image inspect fails: {said}")
    try:
        found = json.loads(asked.stdout)[0]
        environment = dict(line.partition("=")[::2] for line in found["Config"].get("Env") or [])
        return {
            "reference": reference,
            "id": found["Id"],
            "digests": sorted({name.partition("@")[2] for name in found.get("RepoDigests") or []}),
            "architecture": found["Architecture"],
            "size_bytes": found["Size"],
            "environment": environment,
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ImageUnreadable(f"{reference}: docker image inspect prints what is no description of an image") from None


def _major_minor(version: str | None) -> str | None:
    match = re.match(r"\d+\.\d+", version or "")
    return match[0] if match else None


def _ask_python(docker: Docker, image: dict[str, Any], libraries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Have the image's own Python read its files; None where it has none that runs here."""
    name = f"blackwell-serving-read-{uuid.uuid4().hex[:12]}"
    # Isolated, and without writing: nothing of the image but its interpreter takes part.
    command = ["run", "--name", name, *CONFINED, "--entrypoint", "python3", image["id"], "-I", "-B", "-"]
    program = cuda_fatbin.__spec__.loader.get_source(cuda_fatbin.__spec__.name)
    done = docker([*command, json.dumps(libraries)], stdin=program.encode(), timeout=READ_SECONDS)
    if done.status is None:
        docker(["rm", "--force", name], timeout=LOOK_SECONDS)
        raise ImageUnreadable(f"{image['reference']}: reading its libraries fails: {done.stderr.strip()}")
    if done.status in NOT_STARTED or "exec format error" in (done.stdout + done.stderr).lower():
        return None
    try:
        if done.status:
            raise ValueError(done.stderr.strip().rpartition("\n")[2] or f"exit status {done.status}")
        answer = json.loads(done.stdout)
        return {"libraries": answer["libraries"], "torch": answer["torch"]}
    except (ValueError, LookupError, TypeError) as problem:
        raise ImageUnreadable(f"{image['reference']}: reading its libraries fails: {problem}") from None


def _copy_out(docker: Docker, image: dict[str, Any], libraries: list[dict[str, Any]]) -> dict[str, Any]:
    """Copy the files out of a container that is never started, and read them here."""
    made = docker(
        ["create", "--pull", "never", "--network", "none", image["id"], "never-started"], timeout=LOOK_SECONDS
    )
    if made.status != 0:
        raise ImageUnreadable(f"{image['reference']}: docker create fails: {made.stderr.strip()}")
    container = made.stdout.strip()
    names = ["torch/version.py", *(name for library in libraries for name in library["files"])]
    try:
        with tempfile.TemporaryDirectory() as top:
            for folder in PACKAGE_FOLDERS:
                for name in dict.fromkeys(names):
                    _copy_file(docker, f"{container}:/{folder}/{name}", os.path.join(top, folder, name))
            roots = [os.path.join(top, folder) for folder in PACKAGE_FOLDERS]
            found = cuda_fatbin.find_libraries(roots, libraries)
            for entry in found:
                entry["path"] = entry["path"] and entry["path"][len(top) :]
            return {"libraries": found, "torch": cuda_fatbin.find_torch(roots)}
    finally:
        docker(["rm", "--force", container], timeout=LOOK_SECONDS)


def _copy_file(docker: Docker, source: str, target: str) -> None:
    """Copy a file out of a container, where it is there."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    done = docker(["cp", "--follow-link", source, target], timeout=READ_SECONDS)
    if done.status != 0 and not re.search("no such|not find", done.stderr, re.IGNORECASE):
        raise ImageUnreadable(f"docker cp of {source.partition(':')[2]} fails: {done.stderr.strip()}")


def _remembered(cache: str | None) -> dict[str, Any]:
    try:
        with open(cache or "", encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, dict)} if isinstance(known, dict) else {}


def _remember(cache: str | None, known: dict[str, Any]) -> None:
    if not cache:
        return
    folder = os.path.dirname(os.path.abspath(cache))
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".image-code-", delete=False) as file:
        json.dump(known, file, indent=1, sort_keys=True)
    os.replace(file.name, cache)
