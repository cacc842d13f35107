"""Download one model into a Hugging Face cache, with the huggingface_hub of an engine image.

model_cache sends this file to ``python3 -`` in a container of that image, followed by a call of `main`. The functions
above `fetch` need no huggingface_hub: the host uses them to see what a cache holds.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import json
import os
import re
import shutil
import time

MARKERS = "blackwell-serving"  # beside hub/, so that `hf cache` does not take it for a repository
# What the engines never read: their loaders take the first of these kinds of weights that a repository has, leave
# original/ out, and drop consolidated*.safetensors where Hugging Face's own shards are there too
# (vllm/model_executor/model_loader/weight_utils.py, sglang/srt/model_loader/weight_utils.py).
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
NEVER = (
    "original/*", "metal/*", "onnx/*", "openvino/*", "coreml/*",
    "*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.tflite", "*.ot", "*.mlmodel", "*.nemo",
    "*training_args.bin", "*optimizer.bin", "*optimizer.pt", "*scheduler.pt", "*scaler.pt", "*rng_state*.pth",
    ".gitattributes", "*.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.pdf", "*.mp4",
)  # fmt: skip
INDEX = "model.safetensors.index.json"


def needed_files(names):
    """Those of a repository's files that an engine may read."""
    names = [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in NEVER)]
    weights = {pattern: [name for name in names if fnmatch.fnmatch(name, pattern)] for pattern in WEIGHTS}
    if any(fnmatch.fnmatch(name, "model*.safetensors") for name in names):
        weights["*.safetensors"] = [n for n in weights["*.safetensors"] if not n.startswith("consolidated")]
    chosen = next((found for found in weights.values() if found), [])
    every = {name for pattern in WEIGHTS for name in names if fnmatch.fnmatch(name, pattern)}
    return sorted({*chosen, *(name for name in names if name not in every)})


def is_commit(revision):
    return bool(re.fullmatch("[0-9a-f]{40}", revision))


def repository(home, name):
    """The model's directory in the cache, named as huggingface_hub names it."""
    return os.path.join(home, "hub", "models--" + name.replace("/", "--"))


def marker_path(home, name, revision):
    return os.path.join(home, MARKERS, "models--" + name.replace("/", "--"), revision.replace("/", "--") + ".json")


def commit_of(home, name, revision):
    """The commit that the cache knows a revision by; None if it knows none."""
    if is_commit(revision):
        return revision
    try:
        with open(os.path.join(repository(home, name), "refs", revision), encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:
        return None


def lacking(home, name, commit, sizes):
    """Files of a snapshot that are missing, or have another size than `sizes` says (None: any size)."""
    snapshot = os.path.join(repository(home, name), "snapshots", commit)
    found = []
    for file, size in sizes.items():
        try:
            there = os.stat(os.path.join(snapshot, file)).st_size
        except OSError:
            there = None
        if there is None or (size is not None and size != there):
            found.append(file)
    return found


def complete(home, name, revision):
    """The marker of an earlier download, if all that it names is still there; else None."""
    try:
        with open(marker_path(home, name, revision), encoding="utf-8") as file:
            marker = json.load(file)
        whole = marker["commit"] == commit_of(home, name, revision)
        whole = whole and not lacking(home, name, marker["commit"], marker["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return marker if whole else None


def looks_complete(home, name, revision):
    """Sizes of the files of a snapshot that nothing visible is missing from, for a cache that something else filled."""
    commit = commit_of(home, name, revision)
    snapshot = os.path.join(repository(home, name), "snapshots", commit or "-")
    if not commit or blobs(home, name, "*.incomplete"):
        return None
    found = sorted(
        os.path.relpath(os.path.join(folder, file), snapshot)
        for folder, _, files in os.walk(snapshot)
        for file in files
    )
    if directory_problem(snapshot):
        return None
    try:
        return {file: os.stat(os.path.join(snapshot, file)).st_size for file in found}
    except OSError:
        return None  # a link that leads nowhere


def directory_problem(path):
    """Why no engine could load the model in this directory; empty if nothing speaks against it."""
    if not os.path.isdir(path):
        return "is not a directory on this host"
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            json.load(file)
        names = os.listdir(path)
        wanted = [name for pattern in WEIGHTS for name in names if fnmatch.fnmatch(name, pattern)]
        if INDEX in names:
            with open(os.path.join(path, INDEX), encoding="utf-8") as file:
                wanted = sorted(set(json.load(file)["weight_map"].values()))
        if not wanted:
            return "holds no weights ({})".format(", ".join(WEIGHTS))
        for name in wanted:
            with open(os.path.join(path, name), "rb") as file:
                if not file.read(1):
                    return f"holds an empty {name}"
    except OSError as error:
        return f"cannot be loaded: {error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"holds a config.json or {INDEX} that is not what it should be: {error}"
    return ""


def partial_bytes(home, name):
    """Bytes of the model that are in the cache already, parts of files included."""
    left = set(leftovers(home, name))
    return sum(os.stat(blob).st_blocks * 512 for blob in blobs(home, name) if blob not in left)


def blobs(home, name, pattern="*"):
    return glob.glob(os.path.join(glob.escape(repository(home, name)), "blobs", pattern))


def leftovers(home, name):
    """Parts of files that no run goes on with: since 1.18, huggingface_hub gives each attempt a name of its own
    (https://github.com/huggingface/huggingface_hub/issues/4196)."""
    return blobs(home, name, "*.????????.incomplete")


def write(path, text):
    """Write a file whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def write_marker(home, name, revision, commit, files):
    marker = {"name": name, "revision": revision, "commit": commit, "files": files}
    write(marker_path(home, name, revision), json.dumps(marker, indent=1, sort_keys=True) + "\n")


def wanted_files(name, revision):
    """The commit that the revision is now, and the sizes of the files that an engine may read, by the Hub."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    every = {entry.rfilename: entry.size for entry in info.siblings}
    return info.sha, {file: every[file] for file in needed_files(every)}


def fetch(home, name, revision, min_free_bytes, commit, sizes):
    """Bring the snapshot to completeness; what was done."""
    from huggingface_hub import snapshot_download

    for part in leftovers(home, name):
        os.unlink(part)
    missing = lacking(home, name, commit, sizes)
    needed = max(0, sum(sizes[file] or 0 for file in missing) - unfinished_bytes(home, name))
    free = shutil.disk_usage(home).free
    if missing and needed + min_free_bytes > free:
        return {"state": "disk", "needed": needed, "free": free}
    snapshot = os.path.join(repository(home, name), "snapshots", commit)
    if missing:
        for file in missing:
            discard(os.path.join(snapshot, file))  # a file of another size would be taken for the right one
        snapshot_download(name, revision=commit, allow_patterns=[glob.escape(file) for file in sizes], max_workers=4)
        # Without network, it takes a half-filled snapshot for success.
        still = lacking(home, name, commit, sizes)
        if still:
            raise ConnectionError(f"{len(still)} of {len(sizes)} files are still missing, such as {still[0]}")
    if not is_commit(revision):
        write(os.path.join(repository(home, name), "refs", revision), commit)
    sizes = {file: os.stat(os.path.join(snapshot, file)).st_size for file in sizes}
    write_marker(home, name, revision, commit, sizes)
    return {
        "state": "fetched",
        "commit": commit,
        "downloaded": sum(sizes[file] for file in missing),
        "bytes": sum(sizes.values()),
    }


def discard(link):
    """Remove a file of a snapshot, and what it links to."""
    for path in (os.path.realpath(link), link):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def unfinished_bytes(home, name):
    """Bytes of files whose download was interrupted, which goes on from there."""
    return sum(os.stat(blob).st_blocks * 512 for blob in blobs(home, name, "*.incomplete"))


def kind_of(error):
    """The name of what went wrong, for model_cache's messages."""
    names = [kind.__name__ for kind in type(error).__mro__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in names:
        return "gated"
    if "RevisionNotFoundError" in names:
        return "revision"
    if "RepositoryNotFoundError" in names:
        return "missing"
    if status in (401, 403):
        return "refused"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "full"
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    foreign = modules & {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"}
    if foreign or isinstance(error, (ConnectionError, TimeoutError)):
        return "network"
    return "failed"


def attempt(home, name, revision, min_free_bytes, retries):
    """`fetch`, again after a fault of the network, as a result that JSON can carry."""
    known = None
    for turn in range(retries + 1):
        try:
            known = wanted_files(name, revision)
            return fetch(home, name, revision, min_free_bytes, *known)
        except Exception as error:
            kind, text = kind_of(error), " ".join(str(error).split())[:1000] or type(error).__name__
        if kind != "network" or turn == retries:
            break
        time.sleep(min(60, 5 * 2**turn))
    files = looks_complete(home, name, revision) if kind == "network" and known is None else None
    if not files:
        return {"state": kind, "error": text}
    commit = commit_of(home, name, revision)
    write_marker(home, name, revision, commit, files)
    return {"state": "adopted", "commit": commit, "bytes": sum(files.values()), "downloaded": 0, "error": text}


def main(parameters):
    """In the container: set up the environment of the download, and print the result as the last line."""
    os.environ.update(parameters["environment"])
    home, name, revision = parameters["home"], parameters["name"], parameters["revision"]
    marker = complete(home, name, revision)
    if marker:
        result = {"state": "present", "commit": marker["commit"], "bytes": sum(marker["files"].values())}
    else:
        result = attempt(home, name, revision, parameters["min_free_bytes"], parameters["retries"])
    print(json.dumps(result), flush=True)
