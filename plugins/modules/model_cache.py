#!/usr/bin/python
"""Bring the models of a plan into a host's Hugging Face cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_cache
short_description: Bring models into the Hugging Face cache that the engines of a host share
version_added: 0.2.0
description:
  - Downloads each model that is not complete in the cache, once, with the C(huggingface_hub) of the engine's own image,
    in a container without GPU and capabilities, which does not stay. Nothing is installed on the host.
  - After a download, a marker in the cache's C(blackwell-serving/) names the commit, its files and their sizes. While
    they are all there, no container is started and the Hub is not asked. Without the marker it is asked again.
  - After an interruption, finished files stay. A file that was cut off goes on where it was, or begins anew where the
    image has huggingface_hub 1.18 or newer. Only the files that the engines read are downloaded.
  - The token and the proxy go to the container through its standard input, so that no command line, environment, file
    or C(docker inspect) shows them.
options:
  models:
    description: The models. The same name and revision twice is one model.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name on the Hub.
        type: str
        required: true
      revision:
        description: Branch, tag or commit.
        type: str
        default: main
      image:
        description: The engine image that downloads it, which must be on the host. Not for O(models[].directory).
        type: str
      size_bytes:
        description: About how large the download is, for the check of the disk before any container starts.
        type: int
        default: 0
      gated:
        description: Whether it is known that the model needs a token.
        type: bool
        default: false
      directory:
        description: A directory of the host that holds the model. It is only looked at; nothing is downloaded.
        type: path
  volume:
    description:
      - Name of the Docker volume that is the cache. It is made if there is none.
      - A volume that the host cannot read (of another driver, or mounted from elsewhere) is looked at from a container.
    type: str
  project:
    description: The Compose project to which O(volume) belongs. Compose names the volume C(<project>_<volume>).
    type: str
  path:
    description: A directory of the host that is the cache, instead of O(volume). The container runs as its owner.
    type: path
  directory:
    description:
      - A directory of the host with models that a bundle brought, as M(blackwell.serving.bundle_contents) lays them
        out. Those that the cache lacks are moved into it, and only what is not there either is downloaded.
    type: path
  token:
    description: Access token of the Hub, for gated and private models.
    type: str
  proxy:
    description: Address of the HTTP proxy that leads to the Hub.
    type: str
  endpoint:
    description: Address of a mirror of the Hub, such as V(https://hub.example.com).
    type: str
  retries:
    description: How often a download goes on after a fault of the network.
    type: int
    default: 3
  timeout:
    description: Seconds that one model may take.
    type: int
    default: 21600
  min_free_bytes:
    description: Bytes of the disk that stay free.
    type: int
    default: 1073741824
attributes:
  check_mode:
    support: full
    description: Starts no container. A host without Docker is told what would be downloaded.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Download the models before the engines start
  blackwell.serving.model_cache:
    project: serving
    volume: huggingface-cache
    token: "{{ vault_huggingface_token }}"
    models:
      - name: Qwen/Qwen2.5-3B-Instruct
        image: lmsysorg/sglang:v0.5.19-cu129
        size_bytes: 6171877376
"""

RETURN = r"""
models:
  description:
    - Each model and what became of it. C(state) is V(present), V(fetched), V(placed) (from O(directory)), V(adopted)
      (the Hub was out of reach, and the cache looks complete), V(local) (a directory of the host), in check mode
      V(missing), or V(unknown) where only a container could tell.
  returned: always
  type: list
  elements: dict
  sample:
    - {name: Qwen/Qwen2.5-3B-Instruct, revision: main, state: fetched, commit: 0123456789abcdef0123456789abcdef01234567,
       bytes: 6178000000, downloaded: 6178000000}
needed_bytes:
  description: About how much is, or was, to be downloaded.
  returned: always
  type: int
free_bytes:
  description: What is free on the cache's disk before the download, where the host can tell.
  returned: always
  type: int
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import hub_download, model_archive

HOME = "/cache/huggingface"  # in the container
TOKEN_VARIABLE = "serving_stack_huggingface_token"
LABEL = "blackwell.serving.model_fetch"


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def message(name: str, revision: str, result: dict[str, Any], options: dict[str, Any]) -> str:
    """What the user is told about a download that failed."""
    hub = (options["endpoint"] or "https://huggingface.co").rstrip("/")
    state, said = result["state"], f" The Hub says: {result['error']}" if result.get("error") else ""
    if state == "gated" and not options["token"]:
        return (
            f"{name} is gated, and there is no token. Accept its conditions at {hub}/{name}, make a token that may "
            f"read at {hub}/settings/tokens, and set {TOKEN_VARIABLE} to it, in a vault.{said}"
        )
    if state == "gated":
        return (
            f"{name} is gated, and the account of the token ({TOKEN_VARIABLE}) has no access. Accept its conditions at "
            f"{hub}/{name} with that account. A fine-grained token also needs the permission to read gated "
            f"repositories.{said}"
        )
    if state == "missing":
        more = f"the token ({TOKEN_VARIABLE}) may not see it" if options["token"] else f"needs {TOKEN_VARIABLE}"
        return f"{hub}/{name} does not exist; or it is private, and {more}.{said}"
    if state == "revision":
        return f"{name} has no revision {revision}. See {hub}/{name}/commits/main for those that it has.{said}"
    if state == "refused":
        return f"{hub} refuses the download of {name}: is the token ({TOKEN_VARIABLE}) valid?{said}"
    if state == "disk":
        return (
            f"{name} needs {gib(result['needed'])} more, and {gib(result['free'])} are free on the cache's disk, of "
            f"which {gib(options['min_free_bytes'])} must stay free. Nothing of it was downloaded."
        )
    if state == "full":
        return (
            f"The cache's disk is full. Make room and run again; the finished files of {name} stay. ({result['error']})"
        )
    if state == "network":
        return (
            f"{hub} could not be reached for {name}. Finished files stay, and the next run goes on from there. "
            f"The last error: {result['error']}"
        )
    return f"The download of {name} failed: {result['error']}"


class Cache:
    """The cache as a mount of the container, and as a directory of the host where the host can read it."""

    def __init__(self, module: AnsibleModule, docker: str | None) -> None:
        self.module, self.docker = module, docker
        options = module.params
        self.source: str = options["path"] or "_".join(filter(None, [options["project"], options["volume"]]))
        self.home: str | None = None
        self.exists = self._find()

    def _find(self) -> bool:
        path = self.module.params["path"]
        if path:
            self.home = path if os.path.isdir(path) else None
            return bool(self.home)
        if self.docker is None:
            return False
        code, out, _ = self.module.run_command([self.docker, "volume", "inspect", self.source])
        if code:
            return False
        volume = json.loads(out)[0]
        readable = volume["Driver"] == "local" and not volume.get("Options")
        if readable and os.access(volume["Mountpoint"], os.R_OK | os.X_OK):
            self.home = volume["Mountpoint"]
        return True

    def make(self) -> None:
        if self.module.params["path"]:
            os.makedirs(self.source, exist_ok=True)
        else:
            project, key = self.module.params["project"], self.module.params["volume"]
            # Compose takes a volume for its own by these labels.
            labels = {"com.docker.compose.project": project, "com.docker.compose.volume": key} if project else {}
            flags = [f"--label={name}={value}" for name, value in labels.items()]
            code, out, err = self.module.run_command([str(self.docker), "volume", "create", *flags, self.source])
            if code:
                self.module.fail_json(msg=f"docker cannot make the volume {self.source}: {(err or out).strip()}")
        self.exists = self._find()

    def free(self) -> int | None:
        """Bytes that are free on its disk, or will be where it is to be made."""
        where = self.home or (self.source if self.module.params["path"] else self._docker_root())
        while where and not os.path.exists(where):
            where = os.path.dirname(where)
        return shutil.disk_usage(where).free if where else None

    def _docker_root(self) -> str | None:
        if self.exists or self.docker is None:
            return None
        code, out, _ = self.module.run_command([self.docker, "info", "--format", "{{.DockerRootDir}}"])
        return out.strip() if code == 0 and out.strip().startswith("/") else None

    def mount(self) -> list[str]:
        kind = "bind" if self.module.params["path"] else "volume"
        mount = [f"--mount=type={kind},source={self.source},target={HOME}"]
        if kind == "volume":
            return mount
        owner = os.stat(self.source)
        return [*mount, f"--user={owner.st_uid}:{owner.st_gid}"]

    @contextlib.contextmanager
    def lock(self):
        """Keeps a second run out, which would take this one's container for a leftover."""
        if self.home is None:
            yield
            return
        handle = os.open(self.home, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            self.module.fail_json(
                msg=f"Another run downloads models to {self.source} at this moment. Wait until it ends."
            )
        finally:
            os.close(handle)


class Fetcher:
    """Runs the downloader of an engine image."""

    def __init__(self, module: AnsibleModule, docker: str, cache: Cache) -> None:
        self.module, self.docker, self.cache = module, docker, cache
        self.container = f"blackwell-model-fetch-{hashlib.sha256(cache.source.encode()).hexdigest()[:12]}"

    def check_images(self, images: list[str]) -> None:
        for image in images:
            code, out, err = self.module.run_command([self.docker, "image", "inspect", "--format={{.Id}}", image])
            if code:
                self.module.fail_json(
                    msg=f"The image {image}, whose downloader is to fetch models, is not on this host: "
                    f"{(err or out).strip()}. Run playbooks/image.yml first."
                )

    def remove(self) -> None:
        """Remove the container, if there is one: its own, or what an interrupted run left."""
        code, out, err = self.module.run_command(
            [self.docker, "ps", "--all", "--quiet", f"--filter=name=^/?{self.container}$"]
        )
        if code:
            self.module.fail_json(msg=f"Docker does not answer: {(err or out).strip()}")
        if out.split():
            self.module.run_command([self.docker, "rm", "--force", *out.split()])

    def environment(self) -> dict[str, str]:
        options = self.module.params
        wanted = {
            "HOME": "/tmp",
            "HF_HOME": HOME,
            "HF_HUB_CACHE": f"{HOME}/hub",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ENABLE_HF_TRANSFER": "0",  # it starts interrupted files anew
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "HF_TOKEN": options["token"],
            "HF_ENDPOINT": options["endpoint"],
        }
        wanted.update(dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), options["proxy"]))
        return {name: value for name, value in wanted.items() if value}

    def command(self, image: str) -> list[str]:
        return [
            self.docker,
            "run",
            "--rm",
            "--interactive",
            f"--name={self.container}",
            f"--label={LABEL}=1",
            "--pull=never",
            "--log-driver=none",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--env=NVIDIA_VISIBLE_DEVICES=void",  # no GPU, where NVIDIA's runtime is the default one
            *self.cache.mount(),
            "--entrypoint=python3",
            image,
            "-",
        ]

    def fetch(self, model: dict[str, Any]) -> dict[str, Any]:
        """The result of hub_download.main in the container."""
        options = self.module.params
        parameters = {
            "home": HOME,
            "name": model["name"],
            "revision": model["revision"],
            "min_free_bytes": options["min_free_bytes"],
            "retries": options["retries"],
            "environment": self.environment(),
        }
        source = hub_download.__spec__.loader.get_source(hub_download.__name__)
        script = f"{source}\n\nmain(json.loads({json.dumps(parameters)!r}))\n"
        self.remove()
        try:
            done = subprocess.run(
                self.command(model["image"]),
                input=script,
                capture_output=True,
                text=True,
                timeout=options["timeout"],
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {
                "state": "failed",
                "error": f"it took longer than {options['timeout']} seconds. Finished files stay, and the next "
                "run goes on from there",
            }
        finally:
            self.remove()
        return parsed(done.stdout) or {
            "state": "failed",
            "error": f"its container ended with status {done.returncode}: {self.without_secrets(done.stderr)}",
        }

    def without_secrets(self, text: str) -> str:
        for secret in filter(None, (self.module.params["token"], self.module.params["proxy"])):
            text = text.replace(secret, "********")
        return "\n".join(text.strip().splitlines()[-10:])


def parsed(output: str) -> dict[str, Any] | None:
    try:
        return json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None


class Run:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.docker = module.get_bin_path("docker")
        self.results: list[dict[str, Any]] = []
        self.needed, self.free = 0, None
        wanted = {(model["name"], model["revision"], model["directory"]): model for model in module.params["models"]}
        self.local = [model for model in wanted.values() if model["directory"]]
        self.hub = [model for model in wanted.values() if not model["directory"]]

    def fail(self, text: str) -> None:
        self.module.fail_json(msg=text, **self.facts())

    def facts(self) -> dict[str, Any]:
        done = [result for result in self.results if result["state"] in ("fetched", "placed", "adopted", "missing")]
        lines = {
            result["name"]: f"{result['name']} {result['revision']} {result.get('commit') or ''}".rstrip() + "\n"
            for result in self.results
            if result["state"] != "unknown"
        }
        fresh = {result["name"] for result in done}
        return {
            "changed": bool(done),
            "models": self.results,
            "needed_bytes": self.needed,
            "free_bytes": self.free,
            "diff": {
                "before": "".join(line for name, line in lines.items() if name not in fresh),
                "after": "".join(lines.values()),
                "before_header": "models on the host",
                "after_header": "models on the host",
            },
        }

    def note(self, model: dict[str, Any], state: str, **more: Any) -> None:
        self.results.append({"name": model["name"], "revision": model["revision"], "state": state, **more})

    def check_input(self) -> None:
        for model in self.hub:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model["name"]) or not re.fullmatch(
                r"[\w][\w./-]*", model["revision"]
            ):
                self.fail(f"{model['name']} ({model['revision']}) is not the name and revision of a model on the Hub.")
            if not model["image"]:
                self.fail(f"{model['name']}: image is missing; it names the engine image that downloads the model.")

    def look_at_directories(self) -> None:
        for model in self.local:
            problem = hub_download.directory_problem(model["directory"])
            if problem:
                text = f"The model directory {model['directory']} {problem}. Copy the model there, with config.json."
                if not self.module.check_mode:
                    self.fail(text)
                self.module.warn(text)
            self.note(model, "local")

    def pending(self, cache: Cache) -> list[dict[str, Any]]:
        """The models that are not known to be complete; the others go into the results."""
        left = []
        for model in self.hub:
            marker = cache.home and hub_download.complete(cache.home, model["name"], model["revision"])
            if marker:
                self.note(model, "present", commit=marker["commit"], bytes=sum(marker["files"].values()))
            else:
                left.append(model)
        return left

    def place(self, cache: Cache, pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Move models of a bundle into the cache; those that none was brought for are left."""
        left = []
        for model in pending:
            brought = model_archive.of(self.module.params["directory"] or "", model["name"], model["revision"])
            if brought and cache.home is None:
                self.fail(f"The bundle's models cannot be moved into {cache.source}, which the host cannot read.")
            if not brought:
                left.append(model)
            elif self.module.check_mode:
                self.note(model, "missing", bytes=model["size_bytes"])
            else:
                try:
                    marker = brought.move_into(cache.home)
                except (OSError, ValueError) as error:
                    self.fail(f"{model['name']} of the bundle cannot be moved into {cache.source}: {error}")
                self.note(model, "placed", commit=marker["commit"], bytes=sum(marker["files"].values()))
        return left

    def check_disk(self, cache: Cache, pending: list[dict[str, Any]]) -> None:
        there = {m["name"]: hub_download.partial_bytes(cache.home, m["name"]) if cache.home else 0 for m in pending}
        self.needed = sum(max(0, model["size_bytes"] - there[model["name"]]) for model in pending)
        self.free = cache.free()
        least = self.module.params["min_free_bytes"]
        if self.free is not None and self.needed and self.needed + least > self.free:
            names = ", ".join(f"{m['name']} {gib(max(0, m['size_bytes'] - there[m['name']]))}" for m in pending)
            self.fail(
                f"The models need about {gib(self.needed)} more ({names}), and {gib(self.free)} are free on the disk "
                f"of {cache.source}, of which {gib(least)} must stay free. Nothing was downloaded."
            )

    def check_tokens(self, cache: Cache, pending: list[dict[str, Any]]) -> None:
        stored = cache.home and os.path.exists(os.path.join(cache.home, "token"))
        for model in pending:
            if model["gated"] and not self.module.params["token"] and not stored:
                self.fail(message(model["name"], model["revision"], {"state": "gated"}, self.module.params))

    def foretell(self, cache: Cache, pending: list[dict[str, Any]]) -> None:
        unreadable = cache.exists and cache.home is None
        for model in pending:
            self.note(model, "unknown" if unreadable else "missing", bytes=model["size_bytes"])

    def fetch(self, cache: Cache, pending: list[dict[str, Any]]) -> None:
        fetcher = Fetcher(self.module, str(self.docker), cache)
        fetcher.check_images(sorted({model["image"] for model in pending}))
        for model in pending:
            result = fetcher.fetch(model)
            if result["state"] not in ("present", "fetched", "adopted"):
                self.fail(message(model["name"], model["revision"], result, self.module.params))
            error = result.pop("error", None)
            if error:
                self.module.warn(
                    f"The Hub could not be reached for {model['name']} ({error}). What the cache holds looks complete "
                    "and is taken as it is."
                )
            self.note(model, **result)

    def run(self) -> None:
        self.check_input()
        self.look_at_directories()
        if self.hub:
            cache = Cache(self.module, self.docker)
            if not cache.exists and not self.module.check_mode:
                if self.docker is None:
                    self.fail("docker is not installed, and the models are downloaded by the engines' images.")
                cache.make()
            with cache.lock() if not self.module.check_mode else contextlib.nullcontext():
                pending = self.place(cache, self.pending(cache))
                if pending:
                    self.check_tokens(cache, pending)
                    self.check_disk(cache, pending)
                    if self.module.check_mode:
                        self.foretell(cache, pending)
                    elif self.docker is None:
                        self.fail("docker is not installed, and the models are downloaded by the engines' images.")
                    else:
                        self.fetch(cache, pending)
        self.module.exit_json(**self.facts())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "revision": {"type": "str", "default": "main"},
                    "image": {"type": "str"},
                    "size_bytes": {"type": "int", "default": 0},
                    "gated": {"type": "bool", "default": False},
                    "directory": {"type": "path"},
                },
            },
            "volume": {"type": "str"},
            "project": {"type": "str"},
            "path": {"type": "path"},
            "directory": {"type": "path"},
            "token": {"type": "str", "no_log": True},
            "proxy": {"type": "str", "no_log": True},
            "endpoint": {"type": "str"},
            "retries": {"type": "int", "default": 3},
            "timeout": {"type": "int", "default": 21600},
            "min_free_bytes": {"type": "int", "default": 1073741824},
        },
        mutually_exclusive=[("volume", "path")],
        required_one_of=[("volume", "path")],
        supports_check_mode=True,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the container goes with this process
        signal.signal(number, lambda *_: sys.exit(1))
    Run(module).run()


if __name__ == "__main__":
    main()
