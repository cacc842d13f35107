#!/usr/bin/env python3
"""Test hosts for the molecule scenarios: containers that behave like small servers, reached over SSH.

    lab.py up HOST [--distribution trixie|bookworm] [--gpu rtx_5090]... [--nouveau] [--secure-boot off|on|none]
              [--registry] [--behind-proxy] [--isolated] [--like HOST]
                                 start a host, and the package mirror if it does not run; with --registry the image
                                 registry too, which is then the host's mirror of docker.io; isolated, it has a way
                                 to this machine and no other; with --like on the disk of another host of the scenario
                                 as it is now, without the data of its Docker
    lab.py down HOST|--all       remove hosts and everything that is theirs
    lab.py ssh HOST [COMMAND]    log in as `admin`, who may use sudo
    lab.py status                what runs
    lab.py mirror                start the package mirror alone; print its addresses and keys
    lab.py registry              start the image registry, with the simulated engines in it; print their digests
    lab.py gateway               put the gateway's images into the registry; print their digests
    lab.py push NAME IMAGE       put an image of this machine's Docker into the registry as NAME; print its digest
    lab.py inventory             the running hosts as an Ansible inventory
    lab.py clean                 remove all hosts, the mirror and the network

`up` and `down` print one JSON object with `changed`. Needs a Docker engine, and mmdebstrap and gpg for the first start.
Everything that is kept lies in .cache/lab of the repository.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
CACHE = HERE.parents[1] / ".cache/lab"
# A lab of another name in another subnet lives beside this one, for a second checkout on the same machine.
NETWORK = os.environ.get("LAB_NAME", "blackwell-lab")
SUBNET = os.environ.get("LAB_SUBNET", "172.31.251.0/24")
ISOLATED = f"{NETWORK}-isolated"  # a network that leads nowhere
MIRROR, MIRROR_ADDRESS = f"{NETWORK}-mirror", SUBNET.replace(".0/24", ".2")
PROXY, PROXY_ADDRESS, PROXY_USER = f"{NETWORK}-proxy", SUBNET.replace(".0/24", ".3"), "lab:pass-the-gate-1"
NOWHERE = "192.0.2.1"  # RFC 5737: an address of no machine
REGISTRY, REGISTRY_ADDRESS = f"{NETWORK}-registry", SUBNET.replace(".0/24", ".4")
BASE = "blackwell-lab-base:trixie"  # shared by all labs, as their contents do not differ
LABEL = NETWORK.replace("-", ".")  # of containers and networks
IMAGE_LABEL = "blackwell.lab"
KERNEL = os.uname().release

BASE_PACKAGES = [
    "busybox-static",
    "ca-certificates",
    "dbus",
    "dpkg-dev",
    "gcc",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "make",
    "openssh-server",
    "openssl",
    "patch",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
]
PYTHON_VERSIONS = {"bookworm": "3.11", "trixie": "3.13"}
HOST_PYTHON_PACKAGES = [
    "python-on-whales",
    "pydantic",
    "pydantic-core",
    "typing-extensions",
    "typing-inspection",
    "annotated-types",
]

# The GPUs that a host can have: PCI device id, and what nvidia-smi says of them.
GPUS = {
    "rtx_5090": {"device": "2b85", "name": "NVIDIA GeForce RTX 5090", "compute_cap": "12.0", "memory.total": "32607"},
    "rtx_3090": {"device": "2204", "name": "NVIDIA GeForce RTX 3090", "compute_cap": "8.6", "memory.total": "24576"},
}
# What a host that uses the lab's registry as its mirror of docker.io has among its variables.
REGISTRY_OPTIONS = {"registry-mirrors": ["http://registry"]}
# Simulated engine images in the lab's registry, by their keys in catalog/images.yml: the defaults, one later version of
# each, the version that memory was measured with, and the one without code for Blackwell.
SIMULATED = ["sglang-cu129", "sglang-cu130", "sglang-0.5.15", "sglang-2025-09-stock", "vllm-cu129", "vllm-cu130"]
VERIFICATION_IMAGE = "debian:trixie-slim"

GPU_COMMON = {"vendor": "10de", "class": "030000", "subsystem_vendor": "1043", "subsystem_device": "8a7c"}

# systemd and a Docker engine of its own need these; nothing here may load a module into the machine's kernel.
CAPABILITIES = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE", "SYSLOG"]
UNCONFINED = ["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"]
MOUNTS = ["--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs=/run", "--tmpfs=/tmp:exec"]
VOLUMES = ["--volume=/var/lib/docker", "--volume=/var/lib/containerd"]
GPU_DEVICES = ["c 195:* rwm", "c 510:* rwm"]
RUN_OPTIONS = [
    "--cgroupns=host",
    "--restart=always",
    *[f"--cap-add={name}" for name in CAPABILITIES],
    *[f"--security-opt={name}" for name in UNCONFINED],
    *[f"--device-cgroup-rule={rule}" for rule in GPU_DEVICES],
    *MOUNTS,
    *VOLUMES,
]


class LabError(Exception):
    """Something that a person has to put right; the message says what."""


def run(*command: str, stdin: bytes | None = None, check: bool = True) -> str:
    """Standard output of a command. Raises LabError with its last words if it fails and `check` is set."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed, and the test lab needs it") from None
    if check and done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{' '.join(command[:4])} … failed:\n{words[-2000:]}")
    return done.stdout.decode(errors="replace")


def docker(*arguments: str, **options) -> str:
    return run("docker", *arguments, **options)


def engine_problem() -> str | None:
    """Why no Docker engine answers, or None."""
    if shutil.which("docker") is None:
        return "the test lab needs a Docker engine; install one (Debian: apt install docker.io) and try again"
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if answer.returncode:
        return f"the test lab needs a Docker engine, and none answers here: {answer.stderr.strip().splitlines()[-1]}"
    return None


def digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else part.encode())
        total.update(b"\0")
    return total.hexdigest()[:16]


@contextlib.contextmanager
def one_at_a_time():
    """Builds of images and packages wait for each other, also those of other processes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Images


def label_of(image: str, name: str) -> str:
    form = f'{{{{index .Config.Labels "{IMAGE_LABEL}.{name}"}}}}'
    return docker("image", "inspect", "--format", form, image, check=False).strip()


def archive() -> str:
    """Address of the Debian archive that this machine installs from, the public one elsewhere."""
    lines = run("apt-get", "indextargets", "--format", "$(CREATED_BY) $(COMPONENT) $(ORIGIN) $(REPO_URI)").splitlines()
    uris = [words[3] for words in map(str.split, lines) if words[:3] == ["Packages", "main", "Debian"]]
    uris = [uri for uri in uris if "security" not in uri]
    return uris[0] if uris else "http://deb.debian.org/debian/"


def build_base(distribution: str) -> None:
    """Import a minimal Debian as blackwell-lab-base:DISTRIBUTION, if there is none of this content."""
    image, inputs = f"blackwell-lab-base:{distribution}", digest(*BASE_PACKAGES)
    if label_of(image, "inputs") == inputs:
        return
    note(f"Building the base image of {distribution} (minutes, once)")
    CACHE.mkdir(parents=True, exist_ok=True)
    tar = CACHE / f"{distribution}.tar"
    keyring = "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"
    packages = f"--include={','.join(BASE_PACKAGES)}"
    run("mmdebstrap", "--variant=minbase", "--format=tar", keyring, packages, distribution, str(tar), archive())
    docker("import", "--change", f"LABEL {IMAGE_LABEL}.inputs={inputs}", str(tar), image)
    tar.unlink()


def build_image(distribution: str) -> str:
    """Make the lab's image of that distribution current and return its name."""
    build_base(distribution)
    sources = sorted(path for path in (HERE / "image").rglob("*") if path.is_file())
    contents = [part for path in sources for part in (str(path.relative_to(HERE)), path.read_bytes())]
    base = docker("image", "inspect", "--format", "{{.Id}}", f"blackwell-lab-base:{distribution}").strip()
    image, inputs = f"{NETWORK}:{distribution}", digest(base, KERNEL, *contents)
    if label_of(image, "inputs") == inputs:
        return image
    note(f"Building the host image of {distribution}")
    context = CACHE / f"image-{distribution}"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(HERE / "image", context)
    write_kernel(context / "kernel")
    options = ["--quiet", "--network=none", f"--tag={image}", f"--label={IMAGE_LABEL}.inputs={inputs}"]
    docker("build", *options, f"--build-arg=DISTRIBUTION={distribution}", str(context))
    shutil.rmtree(context)
    return image


def write_kernel(root: Path) -> None:
    """What the distribution's package of the running kernel would have installed, without a kernel in it."""
    modules = root / "usr/lib/modules" / KERNEL
    (modules / "kernel/drivers/gpu/drm/nouveau").mkdir(parents=True)
    (modules / "modules.order").write_text("kernel/drivers/gpu/drm/nouveau/nouveau.ko\n")
    (modules / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\nkernel/net/bridge/br_netfilter.ko\n")
    (modules / "modules.builtin.modinfo").touch()
    boot = root / "boot"
    boot.mkdir(parents=True)
    (boot / f"vmlinuz-{KERNEL}").write_text("stand-in for a kernel (test lab)\n")
    options = ("MODULES", "BLK_DEV_INITRD", "RD_ZSTD", "RD_GZIP")
    (boot / f"config-{KERNEL}").write_text("".join(f"CONFIG_{option}=y\n" for option in options))
    (root / "usr/local/lib/lab").mkdir(parents=True)
    (root / "usr/local/lib/lab/kernel-release").write_text(KERNEL + "\n")


# Network and mirror


def fetch_docker_programs() -> None:
    """Lay the programs for the stand-ins of Docker's packages out in .cache/lab/docker, once."""
    if (CACHE / "docker/versions.json").exists():
        return
    note("Fetching Debian's build of Docker for the mirror")
    (CACHE / "docker").mkdir(parents=True, exist_ok=True)
    volumes = ["--volume", f"{CACHE}/docker:/out", "--volume", f"{HERE}/mirror:/srv/program:ro"]
    docker("run", "--rm", *volumes, BASE, "sh", "/srv/program/repack_docker.sh", "/out")


def fetch_wheels() -> None:
    """Keep the Python packages that hosts install, as requirements/ locks them, for each distribution's Python."""
    locks = HERE.parents[1] / "requirements"
    lock = (locks / "test-py312.lock").read_text()
    pins = [found[0] for name in HOST_PYTHON_PACKAGES if (found := re.findall(rf"^{name}==\S+", lock, re.MULTILINE))]
    ansible = re.findall(r"^[\w-]+==\S+", (locks / "run-py312.lock").read_text(), re.MULTILINE)  # for hosts that pull
    wheels = CACHE / "wheels"
    if wheels.exists() and (wheels / "inputs").exists() and (wheels / "inputs").read_text() == digest(*pins, *ansible):
        return
    note("Fetching the Python packages for the mirror")
    for version in PYTHON_VERSIONS.values():
        options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={version}", f"--dest={wheels}"]
        options += [f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
        packages = pins if version == "3.11" else [*pins, *ansible]
        run(sys.executable, "-m", "pip", "download", *options, *packages)
    (wheels / "inputs").write_text(digest(*pins, *ansible))


def ensure_network() -> None:
    for name, options in ((NETWORK, ["--subnet", SUBNET]), (ISOLATED, ["--internal"])):
        if not docker("network", "ls", "--quiet", "--filter", f"name=^{name}$").strip():
            docker("network", "create", *options, "--label", LABEL, name)


def ensure_mirror() -> bool:
    """Build the stand-in packages and serve them at http://mirror/ of the lab's network; True if anything was done."""
    from mirror import packages

    image = build_image("trixie")
    fetch_docker_programs()
    fetch_wheels()
    repositories = CACHE / "mirror"
    built = packages.build(repositories, KERNEL, CACHE / "docker")
    inputs = digest((HERE / "mirror/server.py").read_bytes(), str(CACHE))
    filters = ["--filter", f"name=^{MIRROR}$", "--filter", f"label={LABEL}.inputs={inputs}"]
    if not built and docker("ps", "--quiet", *filters).strip():
        return False
    docker("rm", "--force", "--volumes", MIRROR, check=False)
    (CACHE / "downloads").mkdir(parents=True, exist_ok=True)
    volumes = {
        repositories: "/srv/repositories:ro",
        CACHE / "wheels": "/srv/wheels:ro",
        CACHE / "downloads": "/srv/downloads",
        HERE / "mirror": "/srv/program:ro",
    }
    options = [f"--name={MIRROR}", "--hostname=mirror", "--network-alias=mirror", f"--network={NETWORK}"]
    options += [f"--ip={MIRROR_ADDRESS}", f"--label={LABEL}", f"--label={LABEL}.inputs={inputs}", "--stop-timeout=1"]
    options += [f"--volume={source}:{target}" for source, target in volumes.items()]
    docker("run", "--detach", *options, image, "python3", "/srv/program/server.py", archive())
    wait_for(lambda: connects(MIRROR_ADDRESS, 80), "the package mirror", 20)
    return True


def ensure_proxy() -> None:
    """The only way to the mirror for hosts that are behind it: http://proxy:3128/ with PROXY_USER."""
    inputs = digest((HERE / "proxy.py").read_bytes(), PROXY_USER)
    if docker("ps", "--quiet", "--filter", f"name=^{PROXY}$", "--filter", f"label={LABEL}.inputs={inputs}").strip():
        return
    docker("rm", "--force", "--volumes", PROXY, check=False)
    options = [f"--name={PROXY}", "--hostname=proxy", "--network-alias=proxy", f"--network={NETWORK}"]
    options += [f"--ip={PROXY_ADDRESS}", f"--label={LABEL}", f"--label={LABEL}.inputs={inputs}", "--stop-timeout=1"]
    options += [f"--volume={HERE}/proxy.py:/srv/proxy.py:ro"]
    docker("run", "--detach", *options, build_image("trixie"), "python3", "/srv/proxy.py", PROXY_USER)
    wait_for(lambda: connects(PROXY_ADDRESS, 3128), "the proxy", 20)


# Registry of simulated engines


def build_simulators() -> dict[str, str]:
    """Make the images of the simulated engines current; returns image name -> id."""
    from simulator.image import image_inputs, write_root

    if importlib.util.find_spec("yaml") is None:
        raise LabError(f"the simulated engines need PyYAML, which {sys.executable} does not have; use .venv/bin/python")
    build_base("trixie")
    base = docker("image", "inspect", "--format", "{{.Id}}", BASE).strip()
    sources = HERE / "simulator"
    python = "blackwell-lab-python:trixie"
    recipe = [(sources / name).read_bytes() for name in ("python.Dockerfile", "pick_python")]
    build_if_new(
        python,
        digest(base, *recipe),
        lambda context: shutil.copy(sources / "pick_python", context),
        "simulator/python.Dockerfile",
    )
    python_id = docker("image", "inspect", "--format", "{{.Id}}", python).strip()
    names = {f"docker.io/{VERIFICATION_IMAGE}": python_id}
    for key in SIMULATED:
        entry, contents = image_inputs(key)
        image = f"{NETWORK}-simulator:{key}"
        arguments = {"ENGINE": entry["engine"], "VERSION": entry["engine_version"], "CUDA": entry["cuda"], "KEY": key}
        build_if_new(
            image,
            digest(python_id, *contents),
            lambda context, key=key: write_root(context / "root", key),
            "simulator/Dockerfile",
            *[f"--build-arg={name}={value}" for name, value in arguments.items()],
        )
        names[entry["reference"]] = docker("image", "inspect", "--format", "{{.Id}}", image).strip()
    return names


def build_if_new(image: str, inputs: str, fill, recipe: str, *options: str) -> None:
    """Build an image by the Dockerfile `recipe` in a context that `fill` makes, unless it has these inputs already."""
    if label_of(image, "inputs") == inputs:
        return
    note(f"Building {image}")
    context = CACHE / "image-context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    shutil.copy(HERE / recipe, context / "Dockerfile")
    fill(context)
    tags = [f"--tag={image}", f"--label={IMAGE_LABEL}.inputs={inputs}"]
    docker("build", "--quiet", "--network=none", *tags, *options, str(context))
    shutil.rmtree(context)


def build_registry() -> str:
    """An image with Debian's package docker-registry."""
    image, packages = f"{NETWORK}-registry:trixie", CACHE / "registry-package"
    if not list(packages.glob("docker-registry_*.deb")):
        note("Fetching Debian's package docker-registry")
        packages.mkdir(parents=True, exist_ok=True)
        fetch = "apt-get update -qq && cd /out && apt-get -o APT::Sandbox::User=root download -qq docker-registry"
        docker("run", "--rm", "--volume", f"{packages}:/out", BASE, "sh", "-c", fetch)
    package = next(packages.glob("docker-registry_*.deb"))
    base = docker("image", "inspect", "--format", "{{.Id}}", BASE).strip()
    files = [HERE / "registry" / name for name in ("Dockerfile", "registry.yml")]

    def fill(context: Path) -> None:
        for path in (package, *files):
            shutil.copy(path, context)

    build_if_new(image, digest(base, package.name, *[path.read_bytes() for path in files]), fill, "registry/Dockerfile")
    return image


def ensure_registry() -> dict:
    """Serve the simulated engines at http://registry/, under the names of the real images; returns their digests."""
    names = build_simulators()
    image = build_registry()
    data = CACHE / "registry"
    data.mkdir(parents=True, exist_ok=True)
    inputs = digest(docker("image", "inspect", "--format", "{{.Id}}", image).strip(), str(CACHE))
    filters = ["--filter", f"name=^{REGISTRY}$", "--filter", f"label={LABEL}.inputs={inputs}"]
    changed = not docker("ps", "--quiet", *filters).strip()
    if changed:
        docker("rm", "--force", "--volumes", REGISTRY, check=False)
        options = [f"--name={REGISTRY}", "--hostname=registry", "--network-alias=registry", f"--network={NETWORK}"]
        options += [
            f"--ip={REGISTRY_ADDRESS}",
            f"--label={LABEL}",
            f"--label={LABEL}.inputs={inputs}",
            "--stop-timeout=1",
        ]
        options += ["--publish=127.0.0.1::80", f"--volume={data}:/var/lib/docker-registry"]
        docker("run", "--detach", *options, image)
    wait_for(lambda: connects(REGISTRY_ADDRESS, 80), "the image registry", 20)
    kept = data / "pushed.json"
    pushed = json.loads(kept.read_text()) if kept.exists() else {}
    for name, identity in names.items():
        if pushed.get(name, {}).get("id") != identity:
            note(f"Pushing {name}")
            pushed[name] = {"id": identity, "digest": push(name, identity)}
            kept.write_text(json.dumps(pushed, indent=2))
            changed = True
    return {"changed": changed, "images": {name: pushed[name]["digest"] for name in sorted(names)}}


# Images of the gateway


def gateway_packages(names: list[str]) -> list[Path]:
    """Debian's packages of these names, fetched once."""
    packages = CACHE / "gateway-packages"
    if not all(list(packages.glob(f"{name}_*.deb")) for name in names):
        note(f"Fetching Debian's packages {', '.join(names)}")
        packages.mkdir(parents=True, exist_ok=True)
        fetch = f"apt-get update -qq && cd /out && apt-get -o APT::Sandbox::User=root download -qq {' '.join(names)}"
        docker("run", "--rm", "--volume", f"{packages}:/out", BASE, "sh", "-c", fetch)
    return [next(packages.glob(f"{name}_*.deb")) for name in names]


def gateway_site() -> Path:
    """The real smg and what it requires, installed into a directory for the images' Python."""
    requirements = HERE / "gateway/requirements.txt"
    site, inputs = CACHE / "gateway-site", digest(requirements.read_bytes())
    if not (site.exists() and (CACHE / "gateway-site.inputs").exists()) or (
        (CACHE / "gateway-site.inputs").read_text() != inputs
    ):
        note("Fetching smg from the package index")
        shutil.rmtree(site, ignore_errors=True)
        options = ["--quiet", "--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile"]
        options += ["--python-version=3.13", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_17_x86_64"]
        options += ["--platform=manylinux2014_x86_64", f"--target={site}", f"--requirement={requirements}"]
        run(sys.executable, "-m", "pip", "install", *options)
        (CACHE / "gateway-site.inputs").write_text(inputs)
    return site


def ensure_gateway_images() -> dict[str, str]:
    """The real smg and Debian's nginx under the names of the published images; returns their digests."""
    import yaml

    entries = yaml.safe_load((HERE.parents[1] / "catalog/gateway.yml").read_text())["images"]
    sources = HERE / "gateway"
    base = docker("image", "inspect", "--format", "{{.Id}}", "blackwell-lab-python:trixie").strip()
    site, packages = gateway_site(), gateway_packages(["nginx", "nginx-common"])

    def fill_smg(context: Path) -> None:
        shutil.copytree(site, context / "site")
        shutil.copy(sources / "pick_libraries", context)

    def fill_nginx(context: Path) -> None:
        (context / "packages").mkdir()
        for path in packages:
            shutil.copy(path, context / "packages")
        shutil.copy(sources / "pick_libraries", context)

    script = (sources / "pick_libraries").read_bytes()
    contents = {
        "smg": (fill_smg, [(CACHE / "gateway-site.inputs").read_bytes()]),
        "nginx": (fill_nginx, [path.name for path in packages]),
    }
    digests = {}
    for name, (fill, content) in contents.items():
        image, recipe = f"{NETWORK}-gateway:{name}", f"gateway/{name}.Dockerfile"
        build_if_new(image, digest(base, script, (HERE / recipe).read_bytes(), *content), fill, recipe)
        identity = docker("image", "inspect", "--format", "{{.Id}}", image).strip()
        digests[entries[name]["reference"]] = push(entries[name]["reference"], identity)
    return digests


def push(name: str, identity: str) -> str:
    """Send an image to the registry under the path that docker.io has it at; returns its digest."""
    path = name.removeprefix("docker.io/")
    path = path if "/" in path else f"library/{path}"
    # Through a port of this machine, since Docker sends to no other address without HTTPS.
    target = f"127.0.0.1:{docker('port', REGISTRY, '80').split(':')[-1].strip()}/{path}"
    docker("tag", identity, target)
    try:
        return re.findall(r"digest: (sha256:[0-9a-f]{64})", docker("push", target))[-1]
    finally:
        docker("rmi", target, check=False)


# Hosts


# A host of the lab lives for minutes and has a new key each time.
SSH_OPTIONS = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"]


def container_name(scenario: str, host: str) -> str:
    return f"{NETWORK}-{scenario}-{host}"


def up(
    host: str,
    scenario: str,
    distribution: str,
    gpu: list[str],
    secure_boot: str,
    nouveau: bool,
    registry: bool = False,
    behind_proxy: bool = False,
    like: str = "",
    isolated: bool = False,
) -> dict:
    name = container_name(scenario, host)
    if docker("ps", "--quiet", "--filter", f"name=^{name}$").strip():
        return {"changed": False, "host": host, "address": address_of(name)}
    with one_at_a_time():
        image = copy_disk(scenario, like) if like else build_image(distribution)
        ensure_network()
        ensure_mirror()
        if behind_proxy:
            ensure_proxy()
        if registry:
            ensure_registry()
    hardware = {
        "gpus": [GPU_COMMON | GPUS[name] for name in gpu],
        "secure_boot": {"on": True, "off": False, "none": None}[secure_boot],
        "nouveau": nouveau,
        "isolated": isolated,
    }
    docker("rm", "--force", "--volumes", name, check=False)
    network = ISOLATED if isolated else NETWORK
    for address in [None] if isolated else free_addresses():
        try:
            place = [f"--name={name}", f"--hostname={host}", f"--network={network}"]
            place += [f"--ip={address}"] if address else [f"--dns={NOWHERE}"]
            place += [f"--add-host=mirror:{NOWHERE}"] if behind_proxy else []
            labels = [f"--label={LABEL}", f"--label={LABEL}.scenario={scenario}", f"--label={LABEL}.host={host}"]
            labels += [f"--label={LABEL}.registry"] if registry else []
            docker("create", *place, *labels, *RUN_OPTIONS, image)
            docker("cp", "-", f"{name}:/", stdin=host_files(hardware, distribution))
            docker("start", name)
            break
        except LabError as problem:
            docker("rm", "--force", "--volumes", name, check=False)
            if "Address already in use" not in str(problem):
                raise
    address = address_of(name)
    wait_for(lambda: is_up(address), f"{host} at {address}", 60)
    return {"changed": True, "host": host, "address": address}


def copy_disk(scenario: str, host: str) -> str:
    """An image of a host's disk as it is now; returns its name. Volumes, and so the data of its Docker, stay out."""
    image, container = f"{NETWORK}-disk:{scenario}-{host}", container_name(scenario, host)
    identity = docker("inspect", "--format", "{{.Id}}", container).strip()
    if label_of(image, "inputs") != identity:
        note(f"Copying the disk of {host}")
        docker("commit", "--change", f"LABEL {IMAGE_LABEL}.inputs={identity}", container, image)
    return image


def forget_disks(scenario: str = "") -> None:
    found = docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"{NETWORK}-disk").split()
    if disks := [image for image in found if image.startswith(f"{NETWORK}-disk:{scenario}")]:
        docker("rmi", *disks, check=False)


def host_files(hardware: dict, distribution: str) -> bytes:
    """A tar archive of the files that differ from host to host."""
    suites = f"{distribution} {distribution}-updates"
    files = {
        "etc/lab/hardware.json": json.dumps(hardware),
        "etc/lab/authorized_keys": ssh_key().with_suffix(".pub").read_text(),
        "etc/apt/sources.list": "",
        "etc/apt/sources.list.d/debian.sources": "".join(
            f"Types: deb\nURIs: http://mirror/{path}\nSuites: {names}\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
            for path, names in (("debian", suites), ("debian-security", f"{distribution}-security"))
        ),
        "etc/apt/keyrings/lab-kernel.asc": (CACHE / "mirror/compute/cuda/repos/debian12/x86_64/lab.pub").read_text(),
        "etc/apt/sources.list.d/kernel.sources": "Types: deb\nURIs: http://mirror/kernel\nSuites: /\n"
        "Signed-By: /etc/apt/keyrings/lab-kernel.asc\n",
        "etc/pip.conf": "[global]\nindex-url = http://mirror/pypi/simple\ntrusted-host = mirror\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive_file:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive_file.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def free_addresses() -> list[str]:
    template = "{{range .Containers}}{{.IPv4Address}} {{end}}"
    taken = {word.split("/")[0] for word in docker("network", "inspect", "--format", template, NETWORK).split()}
    prefix = SUBNET.rsplit(".", 1)[0]
    return [address for number in range(10, 250) if (address := f"{prefix}.{number}") not in taken]


def address_of(name: str) -> str:
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name).strip()


def down(scenario: str, host: str | None) -> dict:
    filters = ["--filter", f"label={LABEL}.scenario={scenario}"]
    if host:
        filters += ["--filter", f"label={LABEL}.host={host}"]
    found = docker("ps", "--all", "--quiet", *filters).split()
    if found:
        docker("rm", "--force", "--volumes", *found)
    if not host:
        forget_disks(f"{scenario}-")
    return {"changed": bool(found)}


def clean() -> dict:
    found = docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()
    if found:
        docker("rm", "--force", "--volumes", *found)
    forget_disks()
    networks = docker("network", "ls", "--quiet", "--filter", f"label={LABEL}").split()
    if networks:
        docker("network", "rm", *networks)
    return {"changed": bool(found or networks)}


def hosts() -> list[dict]:
    """The lab's running hosts: name, scenario, container, address, whether the lab's registry is theirs."""
    if engine_problem():
        return []
    form = f'{{{{.Names}}}} {{{{.Label "{LABEL}.scenario"}}}} {{{{.Label "{LABEL}.host"}}}}'
    with_registry = docker("ps", "--filter", f"label={LABEL}.registry", "--format", "{{.Names}}").split()
    lines = docker("ps", "--filter", f"label={LABEL}.host", "--format", form).splitlines()
    # All addresses in one look: a host of another scenario may be gone a moment later.
    template = "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{println}}{{end}}"
    network = docker("network", "inspect", "--format", template, NETWORK, ISOLATED, check=False)
    places = (line.partition(" ")[::2] for line in network.splitlines())
    addresses = {name: place.partition("/")[0] for name, place in places if place}
    return [
        {
            "name": host,
            "scenario": scenario,
            "container": name,
            "address": addresses[name],
            "registry": name in with_registry,
        }
        for name, scenario, host in map(str.split, sorted(lines))
        if name in addresses
    ]


def ssh_key() -> Path:
    key = CACHE / "ssh_key"
    if not key.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test lab", "-f", str(key))
    return key


def ssh_command(address: str) -> list[str]:
    return ["ssh", *SSH_OPTIONS, "-oBatchMode=yes", "-oConnectTimeout=2", "-i", str(ssh_key()), f"admin@{address}"]


def inventory(scenario: str | None) -> dict:
    """Ansible's inventory of the running hosts of a scenario, with the mirror's addresses as variables of all hosts."""
    from mirror import packages

    hostvars = {
        host["name"]: {
            "ansible_host": host["address"],
            "ansible_user": "admin",
            "ansible_ssh_private_key_file": str(ssh_key()),
            "ansible_ssh_common_args": " ".join(SSH_OPTIONS),
            "lab_container": host["container"],
            **({"docker_engine_daemon_options": REGISTRY_OPTIONS} if host["registry"] else {}),
        }
        for host in hosts()
        if scenario in (None, host["scenario"])
    }
    repositories = CACHE / "mirror"
    variables = packages.role_variables(repositories) if (repositories / "complete").exists() else {}
    variables["lab_proxy"] = f"http://{PROXY_USER}@proxy:3128"
    return {"_meta": {"hostvars": hostvars}, "all": {"hosts": list(hostvars), "vars": variables}}


def connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def is_up(address: str) -> bool:
    """True once all services of the host at that address run."""
    if not connects(address, 22):
        return False
    words = [*ssh_command(address), "systemctl", "is-system-running", "--wait"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def wait_for(condition, what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what} did not answer within {seconds:.0f} s")
        time.sleep(0.2)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up")
    start.add_argument("host")
    start.add_argument("--distribution", choices=sorted(PYTHON_VERSIONS), default="trixie")
    start.add_argument("--gpu", action="append", choices=sorted(GPUS), default=[])
    start.add_argument("--secure-boot", choices=["off", "on", "none"], default="off")
    start.add_argument("--nouveau", action="store_true")
    start.add_argument("--behind-proxy", action="store_true", help="the mirror is out of reach, but for the proxy")
    start.add_argument("--registry", action="store_true")
    start.add_argument("--like", default="", metavar="HOST", help="start on a copy of that host's disk")
    start.add_argument("--isolated", action="store_true", help="in a network without mirror, registry or way out")
    stop = commands.add_parser("down")
    stop.add_argument("host", nargs="?")
    stop.add_argument("--all", action="store_true")
    login = commands.add_parser("ssh")
    login.add_argument("host")
    login.add_argument("remote", nargs=argparse.REMAINDER)
    send = commands.add_parser("push")
    send.add_argument("name")
    send.add_argument("image")
    for command in (start, stop):
        command.add_argument("--scenario", default="hand")
    for name in ("status", "mirror", "registry", "gateway", "inventory", "clean"):
        commands.add_parser(name)
    words = parser.parse_args()
    try:
        if problem := engine_problem():
            if words.command != "down":
                raise LabError(problem)
            print(json.dumps({"changed": False}))  # without an engine there are no hosts
            return
        if words.command == "up":
            options = vars(words)
            del options["command"]
            print(json.dumps(up(**options)))
        elif words.command == "down":
            if not (words.host or words.all):
                parser.error("say which host, or --all")
            print(json.dumps(down(words.scenario, words.host)))
        elif words.command == "ssh":
            found = [host["address"] for host in hosts() if host["name"] == words.host]
            if not found:
                raise LabError(f"no host {words.host} runs; `lab.py status` lists those that do")
            os.execvp("ssh", [*ssh_command(found[0]), *words.remote])
        elif words.command == "status":
            for host in hosts():
                print(f"{host['scenario']:<16} {host['name']:<24} {host['address']}")
        elif words.command == "mirror":
            with one_at_a_time():
                ensure_network()
                changed = ensure_mirror()
            print(json.dumps({"changed": changed} | inventory(None)["all"]["vars"], indent=2))
        elif words.command == "registry":
            with one_at_a_time():
                ensure_network()
                answer = ensure_registry()
            print(json.dumps(answer, indent=2))
        elif words.command == "gateway":
            with one_at_a_time():
                ensure_network()
                ensure_registry()
                print(json.dumps(ensure_gateway_images(), indent=2))
        elif words.command == "push":
            print(json.dumps({"digest": push(words.name, words.image)}))
        elif words.command == "clean":
            print(json.dumps(clean()))
        elif words.command == "inventory":
            print(json.dumps(inventory(None), indent=2))
    except LabError as problem:
        raise SystemExit(f"lab: {problem}") from None


if __name__ == "__main__":
    main()
