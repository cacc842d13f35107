"""The images of a host's Docker engine: what is there, and how more gets there. Talks to the command ``docker``.

Runs under the host's own Python, 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .host_facts.host import Output
from .image_reference import parse

INPUTS_LABEL = "blackwell.serving.inputs"
RECIPE_LABEL = "blackwell.serving.recipe"
GIB = 2**30
# Bytes on disk per byte that is downloaded: the layers, and what they unpack to. An estimate.
UNPACK_FACTOR = 3.5
LONGEST_WAIT = 120
# What a registry or dockerd says for good, and what to do about it; anything else may pass, and is tried again.
# Texts: github.com/moby/moby daemon and distribution errors, github.com/distribution/distribution errcode, containerd
# core/remotes/docker.
FINAL_ERRORS = (
    (
        r"toomanyrequests|rate limit",
        "The registry's limit of pulls is used up. Log in (engine_image_registry_username, _password) or use"
        " a mirror (registry-mirrors in docker_engine_daemon_options).",
    ),
    (r"no matching manifest|does not match the specified platform", "It is not published for this architecture."),
    (
        r"denied|unauthorized|authentication required|no basic auth|authorization failed",
        "The repository does not exist, or it wants a login: engine_image_registry_username, "
        "engine_image_registry_password.",
    ),
    (r"manifest unknown|name unknown|manifest for .+ not found|: not found\W*$", "The registry has no such image."),
    (r"no space left on device", "Free space on the file system of Docker's root directory."),
    (r"x509:|certificate", "The registry's certificate is not trusted; its authority belongs in /etc/docker/certs.d."),
    (r"invalid reference format", "Correct the name of the image."),
)
LAYER_LINE = re.compile(r"([0-9a-f]{12}): (.+)")
DIGEST_LINE = re.compile(r"Digest: (sha256:[0-9a-f]{64})")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CREDENTIALS_IN_URL = re.compile(r"://[^/@\s\"]+@")


class ImageError(Exception):
    """Says what could not be had, why, and what to do."""


class Docker:
    """The command ``docker``; `config` is a directory that stands in for the user's own configuration."""

    def __init__(self, config: str | None = None) -> None:
        self.environment = {**os.environ, "LC_ALL": "C"}
        if config:
            self.environment["DOCKER_CONFIG"] = config

    def __call__(self, arguments: Sequence[str], stdin: bytes | None = None, timeout: float = 60) -> Output:
        try:
            command, environment = ["docker", *arguments], self.environment
            done = subprocess.run(
                command, input=stdin, capture_output=True, timeout=timeout, env=environment, check=False
            )
        except FileNotFoundError:
            return Output(None, "", "docker is not installed")
        except subprocess.TimeoutExpired:
            return Output(None, "", f"docker {arguments[0]} gave no answer in {timeout:g} s")
        return Output(done.returncode, _text(done.stdout), _text(done.stderr))

    def follow(
        self, arguments: Sequence[str], on_line: Callable[[str], None], timeout: float, **environment: str
    ) -> Output:
        """Like a call, with each line handed over as it is printed; standard error is part of it."""
        process = subprocess.Popen(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**self.environment, **environment},
            start_new_session=True,
        )
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, stop)
        timer.start()
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(COLOUR.sub("", line).rstrip())
                on_line(lines[-1])
            status: int | None = process.wait()
        finally:
            timer.cancel()
        if expired.is_set():
            return Output(None, "\n".join(lines), f"it was stopped after {timeout:g} s")
        return Output(status, "\n".join(lines), "\n".join(lines[-1:]) if status else "")


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")


class Progress:
    """What a person can follow with ``tail -f``; that it cannot be written stops nothing."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.bytes = 0
        self.begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.begin, 1)

    def say(self, text: str) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{now} {CREDENTIALS_IN_URL.sub('://***@', text)}\n")


@contextlib.contextmanager
def logged_in(registry: str, username: str, password: str, directory: str) -> Iterator[Docker]:
    """A Docker that is logged in, with a configuration that is removed afterwards.

    Without `username` it is the caller's own. The password goes through standard input alone.
    """
    if not username:
        yield Docker()
        return
    config = tempfile.mkdtemp(prefix="docker-config-", dir=directory)
    try:
        own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kept = json.loads(own.read_text("utf-8"))
            kept.pop("credsStore", None)  # a helper would keep the password beyond this
            kept.get("credHelpers", {}).pop(registry, None)
            Path(config, "config.json").write_text(json.dumps(kept), "utf-8")
        docker = Docker(config)
        server = [] if registry in ("", "docker.io") else [registry]
        answer = docker(["login", "--username", username, "--password-stdin", *server], password.encode())
        if answer.status != 0:
            said = (answer.stderr.strip() or answer.stdout.strip()).replace(password, "***")
            raise ImageError(
                f"{registry or 'docker.io'} refuses the login of {username}: {said}. Nothing was pulled. See "
                "engine_image_registry_username and engine_image_registry_password."
            )
        yield docker
    finally:
        shutil.rmtree(config, ignore_errors=True)


def engine_info(docker: Docker) -> dict[str, Any]:
    """The answer to `docker info`; ImageError where no engine answers."""
    answer = docker(["info", "--format", "{{json .}}"])
    try:
        info = json.loads(answer.stdout) if answer.status == 0 else {}
    except ValueError:
        info = {}
    if not info.get("ServerVersion"):
        errors = "; ".join(info.get("ServerErrors") or []) or answer.stderr.strip() or "no answer"
        raise ImageError(f"Docker does not answer: {errors}")
    return info


def inspect(docker: Docker, name: str) -> dict[str, Any] | None:
    """What is known of a local image; None where it is not there."""
    answer = docker(["image", "inspect", name])
    if answer.status != 0:
        return None
    found = json.loads(answer.stdout)
    return found[0] if found else None


def digest_of(image: Mapping[str, Any], name: str) -> str | None:
    """The digest under which the repository `name` has a local image; None where it is not known, or not unique."""
    digests = {text.partition("@")[2] for text in image.get("RepoDigests") or [] if text.partition("@")[0] == name}
    return digests.pop() if len(digests) == 1 else None


def label(image: Mapping[str, Any], name: str) -> str | None:
    return ((image.get("Config") or {}).get("Labels") or {}).get(name)


# Sizes and disk space


def layers(docker: Docker, name: str, architecture: str) -> dict[str, int]:
    """Bytes of each layer by the short id that `docker pull` prints; empty where the registry does not tell."""
    manifest = _manifest(docker, name)
    if "manifests" in manifest:
        fitting = [
            entry["digest"]
            for entry in manifest["manifests"]
            if entry.get("platform", {}).get("architecture") == architecture
        ]
        manifest = _manifest(docker, parse(name).pinned(fitting[0])) if fitting else {}
    return {layer["digest"].partition(":")[2][:12]: int(layer["size"]) for layer in manifest.get("layers", [])}


def _manifest(docker: Docker, name: str) -> dict[str, Any]:
    answer = docker(["manifest", "inspect", name], timeout=30)
    try:
        manifest = json.loads(answer.stdout) if answer.status == 0 else {}
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def storage_root(info: Mapping[str, Any], containerd: str = "/var/lib/containerd") -> str:
    """Where the engine keeps images: its own directory or containerd's (docs.docker.com/engine/storage/containerd)."""
    snapshotter = any("io.containerd.snapshotter" in value for pair in info.get("DriverStatus") or [] for value in pair)
    return containerd if snapshotter and os.path.isdir(containerd) else info.get("DockerRootDir") or "/var/lib/docker"


def free_bytes(path: str) -> int:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def refuse_small_disk(root: str, needed: Mapping[str, tuple[int, str]], keep_free: int) -> None:
    """`needed`: bytes on disk and how they are known, by image. Raises ImageError where they do not fit."""
    total = sum(size for size, _ in needed.values())
    free = free_bytes(root)
    if total and free < total + keep_free:
        each = "; ".join(f"{name} {size / GIB:.1f} GiB ({how})" for name, (size, how) in needed.items())
        raise ImageError(
            f"The disk under {root} is too small: {free / GIB:.1f} GiB are free, the images need about "
            f"{total / GIB:.1f} GiB ({each}), and {keep_free / GIB:.0f} GiB are to stay free. Nothing was pulled. Free "
            "space (engine_image_prune), move Docker's data-root, or set engine_image_disk_check: false."
        )


# Pulling


def final_error(said: str) -> str | None:
    """What to do about an error that trying again does not heal; None for the others."""
    return next((advice for pattern, advice in FINAL_ERRORS if re.search(pattern, said, re.I)), None)


class Pull:
    """One image on its way. dockerd keeps finished layers, so a new attempt goes on where the last one stopped."""

    def __init__(self, docker: Docker, name: str, sizes: Mapping[str, int], progress: Progress) -> None:
        self.docker, self.name, self.sizes, self.progress = docker, name, sizes, progress
        self.short = name.partition("@")[0]
        self.states: dict[str, str] = {}
        self.digest: str | None = None

    def _see(self, line: str) -> None:
        if digest := DIGEST_LINE.match(line):
            self.digest = digest[1]
        layer = LAYER_LINE.match(line)
        if not layer:
            return
        new = layer[2] if layer[2] in ("Download complete", "Pull complete", "Already exists") else "waiting"
        old = self.states.get(layer[1])
        if new == "waiting" and old:
            return
        if new in ("Download complete", "Pull complete") and old == "waiting":
            self.progress.bytes += self.sizes.get(layer[1], 0)
        self.states[layer[1]] = new
        if new != "waiting":
            self._tell()

    def _tell(self) -> None:
        here = [layer for layer, state in self.states.items() if state != "waiting"]
        size = ""
        if self.sizes:
            have = sum(self.sizes.get(layer, 0) for layer in here)
            size = f", {have / GIB:.2f} of {sum(self.sizes.values()) / GIB:.2f} GiB"
        self.progress.say(
            f"{self.short}: {len(here)} of {len(self.states)} layers{size}, {self.progress.seconds:.0f} s"
        )

    def run(self, options: Sequence[str], retries: int, delay: float, timeout: float) -> None:
        """ImageError where it cannot be had."""
        for attempt in range(1, retries + 2):
            self.progress.say(f"{self.name}: pulling, attempt {attempt} of {retries + 1}")
            done = self.docker.follow(["pull", *options, self.name], self._see, timeout)
            if done.status == 0:
                self.progress.say(f"{self.short}: there, {self.progress.seconds:.0f} s")
                return
            said = done.stderr.strip() or f"docker pull ended with status {done.status}"
            advice = final_error(said)
            self.progress.say(f"{self.short}: {said}")
            if advice:
                raise ImageError(f"{self.name} cannot be pulled: {_sentence(said)} {advice}")
            if attempt <= retries:
                time.sleep(min(delay * 2 ** (attempt - 1), LONGEST_WAIT))
        raise ImageError(
            f"{self.name} could not be pulled in {retries + 1} attempts: {_sentence(said)} What was downloaded "
            "stays, and the next run goes on from there. Look at the network and the proxy (gpu_host_proxy)."
        )


def _sentence(text: str) -> str:
    return f"{CREDENTIALS_IN_URL.sub('://***@', text).rstrip('.')}."


# Archives and builds


def load(
    docker: Docker, reference: str, archive: str, wanted_id: str | None, progress: Progress, timeout: float
) -> None:
    """`docker load`; where the archive holds something else, the name is put back as it was, and ImageError says so."""
    before = inspect(docker, reference)
    progress.say(f"{reference}: loading {archive}")
    done = docker(["load", "--quiet", "--input", archive], timeout=timeout)
    if done.status != 0:
        raise ImageError(f"{archive} cannot be loaded: {_sentence((done.stderr or done.stdout).strip())}")
    image = inspect(docker, reference)
    if image is None or (wanted_id not in (None, image["Id"]) and reference not in done.stdout):
        held = " ".join(done.stdout.split()) or "nothing with a name"
        raise ImageError(f"{archive} does not hold {reference}. docker load says: {held}")
    if wanted_id and image["Id"] != wanted_id:
        if before:
            docker(["tag", before["Id"], reference])
        else:
            docker(["image", "rm", reference])
        raise ImageError(
            f"{archive} holds another {reference} than the one that is locked: {image['Id']}, not {wanted_id}. The "
            "name is as it was. Take the archive that was locked, or correct the id in serving_image_locks. (Docker's "
            "two image stores name one image by different ids; all hosts that share a lock need the same one.)"
        )


def build(docker: Docker, reference: str, spec: Mapping[str, Any], progress: Progress, timeout: float) -> None:
    """Build `reference` from `spec`: dockerfile, files (name to content), inputs (their digest), recipe (its name)."""
    labels = [f"{INPUTS_LABEL}={spec['inputs']}", f"{RECIPE_LABEL}={spec.get('recipe') or ''}"]
    # Named without a value, so that a proxy's password stands in no command line and in no layer.
    proxies = [name for name in sorted(os.environ) if name.lower() in ("http_proxy", "https_proxy", "no_proxy")]
    options = ["--tag", reference]
    options += [word for text in labels for word in ("--label", text)]
    options += [word for name in proxies for word in ("--build-arg", name)]
    with tempfile.TemporaryDirectory(prefix="engine-image-") as context:
        for name, content in {**spec.get("files", {}), "Dockerfile": spec["dockerfile"]}.items():
            Path(context, os.path.basename(name)).write_text(content, "utf-8")
        has_buildx = docker(["buildx", "version"]).status == 0
        command = ["buildx", "build", "--load", "--progress", "plain"] if has_buildx else ["build", "--force-rm"]
        environment = {} if has_buildx else {"DOCKER_BUILDKIT": "0"}
        progress.say(f"{reference}: building")
        done = docker.follow(
            [*command, *options, context], lambda line: progress.say(f"{reference}: {line}"), timeout, **environment
        )
    if done.status != 0:
        last = "\n".join([line for line in done.stdout.splitlines() if line.strip()][-25:])
        why = done.stderr if done.status is None else f"docker ended with status {done.status}"
        raise ImageError(
            f"{reference} cannot be built: {_sentence(why)} Its last lines (all are in {progress.path}):\n"
            f"{CREDENTIALS_IN_URL.sub('://***@', last)}"
        )


# Removing


def prunable(
    images: Sequence[Mapping[str, Any]],
    used: Iterable[str],
    repositories: Iterable[str],
    keep: int,
    older_than_days: float,
    now: datetime.datetime,
) -> list[dict[str, Any]]:
    """The images that nothing needs: {id, names, size_bytes, age_days}.

    `images` as `docker image inspect` tells them, `used` the ids that containers or releases have. Of each repository
    `keep` more stay, the ones that came last.
    """
    used, repositories = set(used), set(repositories)
    ours: dict[str, list[tuple[datetime.datetime, Mapping[str, Any]]]] = {}
    for image in images:
        names = _names(image)
        repository = next((parse(name).name for name in names if parse(name).name in repositories), None)
        foreign = any(parse(name).name not in repositories for name in names)
        if label(image, INPUTS_LABEL):
            repository = repository or (parse(names[0]).name if names else "")
            foreign = False
        if repository is not None and not foreign and image["Id"] not in used:
            ours.setdefault(repository, []).append((_arrival(image), image))
    found = []
    for entries in ours.values():
        entries.sort(key=lambda entry: entry[0], reverse=True)
        for arrival, image in entries[keep:]:
            age = (now - arrival).total_seconds() / 86400
            if age >= older_than_days:
                found.append(
                    {
                        "id": image["Id"],
                        "names": _names(image),
                        "size_bytes": image.get("Size") or 0,
                        "age_days": round(age, 1),
                    }
                )
    return found


def _names(image: Mapping[str, Any]) -> list[str]:
    tags = [name for name in image.get("RepoTags") or [] if "<none>" not in name]
    return tags + [name for name in image.get("RepoDigests") or [] if "<none>" not in name]


def _arrival(image: Mapping[str, Any]) -> datetime.datetime:
    """When the image got its name here, or else when it was made."""
    tagged = (image.get("Metadata") or {}).get("LastTagTime") or ""
    text = tagged if tagged and not tagged.startswith("0001") else image.get("Created") or ""
    match = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text)
    if not match:
        return datetime.datetime.now(datetime.timezone.utc)
    offset = re.search(r"([+-])(\d\d):(\d\d)$", text)
    moment = datetime.datetime.fromisoformat(match[0]).replace(tzinfo=datetime.timezone.utc)
    if offset:
        difference = datetime.timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        moment += -difference if offset[1] == "+" else difference
    return moment


def local_images(docker: Docker) -> list[dict[str, Any]]:
    listed = docker(["image", "ls", "--no-trunc", "--quiet"])
    ids = list(dict.fromkeys(listed.stdout.split()))
    if listed.status != 0 or not ids:
        return []
    answer = docker(["image", "inspect", *ids])
    try:
        return json.loads(answer.stdout)
    except ValueError:
        return []


def ids_in_containers(docker: Docker) -> set[str]:
    """The images of all containers, stopped ones too; ImageError where that cannot be told."""
    listed = _container_ids(docker)
    answer = docker(["inspect", "--type", "container", *sorted(listed)]) if listed else Output(0, "[]")
    try:
        containers = json.loads(answer.stdout)
    except ValueError:
        containers = []
    unknown = listed - {container["Id"] for container in containers}
    if unknown & _container_ids(docker):  # others went away meanwhile
        raise ImageError(f"Docker does not tell which images its containers have: {answer.stderr.strip()}")
    used = {container["Image"] for container in containers}
    for name in {(container.get("Config") or {}).get("Image") for container in containers} - {None, ""}:
        image = inspect(docker, name)
        used |= {image["Id"]} if image else set()
    return used


def _container_ids(docker: Docker) -> set[str]:
    listed = docker(["ps", "--all", "--quiet", "--no-trunc"])
    if listed.status != 0:
        raise ImageError(f"Docker does not list its containers: {listed.stderr.strip()}")
    return set(listed.stdout.split())


def released_references(releases: str) -> list[str]:
    """The images that the kept releases of a stack name in their plan.json."""
    names: list[str] = []
    for path in sorted(Path(releases).glob("*/plan.json")):
        try:
            services = json.loads(path.read_text("utf-8"))["services"]
            names += [service["image"] for service in services]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ImageError(f"{path} cannot be read, so what it keeps is not known: {problem}") from problem
    return list(dict.fromkeys(names))


def remove(docker: Docker, image: Mapping[str, Any]) -> str | None:
    """Take every name from the image, which removes it; never by force. What Docker says where it will not."""
    answer = docker(["image", "rm", *(image["names"] or [image["id"]])], timeout=600)
    return None if answer.status == 0 else (answer.stderr.strip() or f"status {answer.status}")
