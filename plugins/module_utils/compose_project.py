"""A small Compose project with its configuration files: what differs from what is wanted, and how it is brought there.

    DIRECTORY/compose.yaml, compose.override.yaml, the files     what runs
    DIRECTORY/project.json                                       which files are ours, and what each service has read

A file that a container mounts counts as a part of it: when it changes, the container is made anew, or told to read it
again where `reload` says how. Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import posixpath
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .stack_steps import Step, containers_of, labels_file, steps_to

STATE = "project.json"
COMPOSE, OVERRIDE = "compose.yaml", "compose.override.yaml"


class File(NamedTuple):
    """A file below the project's directory; `owner` and `group` are numbers, None for whoever writes it."""

    path: str
    content: str
    mode: str = "0644"
    owner: int | None = None
    group: int | None = None
    secret: bool = False


class Reload(NamedTuple):
    """How a service reads files again: `check` and `command` run in its container, its main process gets `signal`."""

    service: str
    files: Sequence[str]
    check: Sequence[str] = ()
    command: Sequence[str] = ()
    signal: str = ""


class Project(NamedTuple):
    """What is wanted. `definition` is the Compose file as a dictionary, `compose` its text.

    `images`: by service, what runs in place of the image that the Compose file names.
    """

    name: str
    definition: Mapping[str, Any]
    compose: str
    files: Sequence[File]
    reloads: Sequence[Reload] = ()
    images: Mapping[str, str] = {}


class State(NamedTuple):
    """What an earlier run left: the paths of its files, what each service has read, and the definition that ran."""

    files: Sequence[str] = ()
    loaded: Mapping[str, str] = {}
    definition: Mapping[str, Any] | None = None


class Change(NamedTuple):
    """What there is to do. `files`: those that differ; `gone`: paths; `reloads`: in the order to do them.

    `trials`: reloads of services that move, and so read their files anyway, files that they have not read yet.
    """

    files: Sequence[File]
    gone: Sequence[str]
    steps: Sequence[Step]
    reloads: Sequence[Reload]
    trials: Sequence[Reload]

    def __bool__(self) -> bool:
        return bool(self.files or self.gone or self.reloads or any(step.changes for step in self.steps))


def problem_of(project: Project) -> str:
    """Why it cannot be; empty where it can."""
    paths = [file.path for file in project.files]
    for path in paths:
        if path.startswith(("/", "..")) or posixpath.normpath(path) != path:
            return f"{path}: must be a path below the directory"
        if path in (STATE, COMPOSE, OVERRIDE):
            return f"{path}: is written by the module"
        if paths.count(path) > 1:
            return f"{path}: is listed more than once"
    services = project.definition.get("services") or {}
    for reload in project.reloads:
        if reload.service not in services:
            return f"reload: there is no service {reload.service}; there are: {', '.join(services) or 'none'}"
    return ""


def mounted(service: Mapping[str, Any], definition: Mapping[str, Any]) -> list[str]:
    """Paths below the directory that the service mounts, or gets as a secret or config of Compose."""
    sources = []
    for volume in service.get("volumes") or []:
        sources.append(volume.get("source", "") if isinstance(volume, Mapping) else str(volume).split(":")[0])
    for kind in ("secrets", "configs"):
        for entry in service.get(kind) or []:
            name = entry.get("source") if isinstance(entry, Mapping) else entry
            sources.append(((definition.get(kind) or {}).get(name) or {}).get("file", ""))
    return [posixpath.normpath(source) for source in sources if source.startswith("./")]


def read_by(project: Project, name: str) -> list[File]:
    """The files that a service sees."""
    places = mounted(project.definition["services"][name], project.definition)
    return [file for file in project.files if any(_below(file.path, place) for place in places)]


def _below(path: str, place: str) -> bool:
    return place in (".", path) or path.startswith(f"{place}/")


def _matches(reload: Reload, path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in reload.files)


def reloaded(project: Project, reload: Reload) -> list[File]:
    return [file for file in project.files if _matches(reload, file.path)]


def digest(files: Iterable[File]) -> str:
    """One text that is the same whenever the files are."""
    content = [[file.path, file.content, file.mode, file.owner, file.group] for file in files]
    return hashlib.sha256(json.dumps(sorted(content, key=lambda entry: entry[0])).encode()).hexdigest()


def loaded_now(project: Project) -> dict[str, str]:
    """By service, what it has read when it has read all that it can read again."""
    found: dict[str, list[File]] = {}
    for reload in project.reloads:
        found.setdefault(reload.service, []).extend(reloaded(project, reload))
    return {service: digest(files) for service, files in found.items()}


def with_files(project: Project) -> dict[str, Any]:
    """The definition, each service with its image and the digest of the files for which its container is made anew."""
    services = {}
    for name, service in (project.definition.get("services") or {}).items():
        again = [reload for reload in project.reloads if reload.service == name]
        fixed = [f for f in read_by(project, name) if not any(_matches(reload, f.path) for reload in again)]
        services[name] = {**service, **({"files": digest(fixed)} if fixed else {})}
        if name in project.images:
            services[name]["image"] = project.images[name]
    return {**project.definition, "services": services}


def change_to(
    project: Project,
    directory: str,
    state: State,
    inspected: Sequence[Mapping[str, Any]],
    images: Mapping[str, str | None],
) -> Change:
    """From what is on the host to the project."""
    definition = with_files(project)
    order = list(definition["services"])
    containers = containers_of(project.name, inspected)
    steps = steps_to(definition, order, {}, containers, images, state.definition)
    moving = {step.service for step in steps if step.changes}
    loaded = loaded_now(project)
    stale = {name for name in loaded if loaded[name] != state.loaded.get(name)}
    wanted = all_files(project)
    names = {file.path for file in wanted}
    return Change(
        files=[file for file in wanted if differs(directory, file)],
        gone=[path for path in state.files if path not in names and os.path.lexists(os.path.join(directory, path))],
        steps=steps,
        reloads=[reload for reload in project.reloads if reload.service in stale - moving],
        trials=[reload for reload in project.reloads if reload.service in stale & moving],
    )


def all_files(project: Project) -> list[File]:
    """Those of the project, and the two of Compose."""
    return [
        *project.files,
        File(COMPOSE, project.compose),
        File(OVERRIDE, labels_file(with_files(project), project.images)),
    ]


def differs(directory: str, file: File) -> bool:
    path = os.path.join(directory, file.path)
    try:
        status = os.stat(path)
        if content_of(directory, file.path) != file.content:
            return True
    except OSError:
        return True
    return (
        status.st_mode & 0o7777 != int(file.mode, 8)
        or (file.owner is not None and status.st_uid != file.owner)
        or (file.group is not None and status.st_gid != file.group)
    )


def content_of(directory: str, path: str) -> str | None:
    try:
        with open(os.path.join(directory, path), encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(directory: str, file: File) -> None:
    """In one step; a reader sees the old or the new file, and nobody a secret in between."""
    path = os.path.join(directory, file.path)
    make_directory(os.path.dirname(path))
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.write(file.content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.owner is not None or file.group is not None:
            os.chown(temporary, -1 if file.owner is None else file.owner, -1 if file.group is None else file.group)
        os.chmod(temporary, int(file.mode, 8))
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def make_directory(path: str) -> None:
    """With those above it; containers of any user may enter, whatever the umask is."""
    if not os.path.isdir(path):
        make_directory(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def kept(directory: str, paths: Iterable[str]) -> list[tuple[str, File | None]]:
    """The files as they are now, to be put back; None for one that is not there."""
    found: list[tuple[str, File | None]] = []
    for path in paths:
        content = content_of(directory, path)
        if content is None:
            found.append((path, None))
        else:
            status = os.stat(os.path.join(directory, path))
            mode = f"{status.st_mode & 0o7777:04o}"
            found.append((path, File(path, content, mode, status.st_uid, status.st_gid)))
    return found


def put_back(directory: str, files: Iterable[tuple[str, File | None]]) -> None:
    for path, file in files:
        if file is not None:
            write(directory, file)
        elif os.path.lexists(os.path.join(directory, path)):
            os.unlink(os.path.join(directory, path))


def read_state(directory: str) -> State:
    try:
        known = json.loads(content_of(directory, STATE) or "{}")
    except ValueError:
        return State()
    return State(known.get("files") or [], known.get("loaded") or {}, known.get("definition"))


def write_state(directory: str, state: State) -> None:
    content = {"schema": 1, "files": list(state.files), "loaded": state.loaded, "definition": state.definition}
    write(directory, File(STATE, json.dumps(content, indent=2, ensure_ascii=False) + "\n"))


def diff_of(directory: str, change: Change) -> list[dict[str, str]]:
    """What `--diff` shows: the files, of secrets their paths alone, and the steps."""
    diffs = []
    for file in change.files:
        before = content_of(directory, file.path)
        path = os.path.join(directory, file.path)
        if before == file.content:
            shown = (f"{path}: other permissions\n", f"{path}: mode {file.mode}\n")
        elif file.secret:
            shown = ("" if before is None else "(a secret)\n", "(another secret)\n")
        else:
            shown = (before or "", file.content)
        diffs.append({"before_header": path, "after_header": path, "before": shown[0], "after": shown[1]})
    for path in change.gone:
        diffs.append({"before_header": path, "after_header": f"{path} (absent)", "before": f"{path}\n", "after": ""})
    lines = [f"{step.service}: {step.action}, {step.reason}" for step in change.steps]
    lines += [f"{reload.service}: reads its files again" for reload in change.reloads]
    if lines:
        after = "".join(f"{line}\n" for line in lines)
        diffs.append({"before_header": "containers", "after_header": "containers", "before": "", "after": after})
    return diffs
