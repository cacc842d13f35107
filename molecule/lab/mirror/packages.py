"""What the lab's package mirror offers: NVIDIA's and Docker's names, versions and dependencies, with stand-ins inside.

Each suite holds what its real archive is known to hold, no more. Sources:
- driver package names, pinning packages, compute-only sets: NVIDIA driver installation guide, and the lists of
  developer.download.nvidia.com/compute/cuda/repos/<suite>/x86_64/
- no branch 580 in debian13: github.com/NVIDIA/cuda-repo-management/issues/38
- newest cuda-drivers without dependencies: github.com/cupy/cupy/issues/10295
- container toolkit: github.com/NVIDIA/nvidia-container-toolkit, packaging/debian and deployments/systemd
- what a DKMS package's scripts do: postinst-dkms and prerm-dkms in Debian's package dh-dkms 3.0.10
- Docker: docs.docker.com/engine/install/debian
"""

import hashlib
import json
import shutil
from pathlib import Path

from .deb import Key, Link, Package, write_flat, write_suite

STAND_INS = Path(__file__).parent / "stand_ins"
DRIVERS = {
    "debian12": ["580.159.03", "580.173.02", "580.178.04", "595.71.05", "595.91.07"],
    "debian13": ["590.48.01", "595.71.05", "595.91.07", "610.57.04"],
}
PINNING = {"debian12": ["580", "595"], "debian13": ["590", "595", "610"]}
TOOLKIT_12_9 = ["debian12", "ubuntu2404"]
CLOSED_MODULES_END = 610  # from this branch on the repository holds open modules alone
DEBIAN_DRIVER = "550.163.01"
CONTAINER_TOOLKITS = ["1.18.2", "1.19.1", "1.20.0"]
DOCKER_SUITES = {"bookworm": "12", "trixie": "13"}
HEADERS_SOURCE = "linux-lab"


def stand_in(name: str, **values: str) -> str:
    text = (STAND_INS / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def package(name: str, version: str, *depends: str, arch: str = "amd64", **more) -> Package:
    fields = {"Depends": ", ".join(depends)} if depends else {}
    fields |= more.pop("fields", {})
    description = f"stand-in for {name} (test lab)\n Only name, version and dependencies are the original's."
    return Package(name, version, description, arch, fields, **more)


# Driver


def kernel_modules(version: str, revision: str, is_open: bool, *, name: str) -> Package:
    """A DKMS package whose module is a stand-in that the host's own dkms compiles, signs and installs."""
    source = f"/usr/src/nvidia-{version}"
    other = "nvidia-kernel-dkms" if is_open else "nvidia-kernel-open-dkms"
    return package(
        name,
        f"{version}-{revision}",
        "dkms",
        f"nvidia-kernel-support (= {version}-{revision})",
        fields={"Conflicts": other, "Replaces": other, "Provides": f"nvidia-kernel-{version}"},
        files={
            f"{source}/dkms.conf": stand_in("dkms.conf", VERSION=version),
            f"{source}/Makefile": stand_in("Makefile"),
            f"{source}/nvidia.c": stand_in(
                "nvidia.c", VERSION=version, LICENSE="Dual MIT/GPL" if is_open else "NVIDIA"
            ),
        },
        scripts={name: stand_in(f"dkms.{name}", VERSION=version) for name in ("postinst", "prerm")},
    )


def driver(version: str, revision: str = "1") -> list[Package]:
    """Every package of one driver version, as in NVIDIA's repositories for Debian."""
    full = f"{version}-{revision}"
    same = f"(= {full})"
    library = "/usr/lib/x86_64-linux-gnu"
    branch = int(version.split(".")[0])
    closed = (
        [] if branch >= CLOSED_MODULES_END else [kernel_modules(version, revision, False, name="nvidia-kernel-dkms")]
    )
    return [
        package("nvidia-open", full, f"nvidia-driver-cuda {same}", f"nvidia-kernel-open-dkms {same}"),
        package(
            "nvidia-driver-cuda",
            full,
            f"libcuda1 {same}",
            f"libnvidia-ml1 {same}",
            f"libnvidia-ptxjitcompiler1 {same}",
            f"nvidia-persistenced {same}",
            f"nvidia-kernel-open-dkms {same} | nvidia-kernel-dkms {same}",
            f"nvidia-modprobe (>= {version})",
            files={"/usr/bin/nvidia-smi": stand_in("nvidia-smi", VERSION=version)},
        ),
        kernel_modules(version, revision, True, name="nvidia-kernel-open-dkms"),
        *closed,
        package(
            "nvidia-kernel-support",
            full,
            "nvidia-modprobe",
            files={"/etc/modprobe.d/nvidia.conf": "options nvidia NVreg_OpenRmEnableUnsupportedGpus=1\n"},
        ),
        package(
            "nvidia-persistenced",
            full,
            files={
                "/usr/bin/nvidia-persistenced": stand_in("nvidia-persistenced", VERSION=version),
                "/usr/lib/systemd/system/nvidia-persistenced.service": stand_in("nvidia-persistenced.service"),
            },
            scripts={"postinst": "[ ! -d /run/systemd/system ] || systemctl daemon-reload"},
        ),
        package("nvidia-modprobe", full, files={"/usr/bin/nvidia-modprobe": stand_in("nvidia-modprobe")}),
        package(
            "libcuda1",
            full,
            f"libnvidia-ptxjitcompiler1 {same}",
            files={
                f"{library}/libcuda.so.{version}": f"stand-in {version}\n",
                f"{library}/libcuda.so.1": Link(f"libcuda.so.{version}"),
            },
        ),
        package(
            "libnvidia-ml1",
            full,
            files={
                f"{library}/libnvidia-ml.so.{version}": f"stand-in {version}\n",
                f"{library}/libnvidia-ml.so.1": Link(f"libnvidia-ml.so.{version}"),
            },
        ),
        package("libnvidia-ptxjitcompiler1", full),
        package("nvidia-driver", full, f"nvidia-driver-cuda {same}"),
        package("cuda-drivers", full, *([f"nvidia-driver {same}"] if closed else [])),
    ]


def pinning(branch: str) -> Package:
    """Keeps the driver packages of a repository on one branch."""
    families = ("cuda-drivers*", "libcuda*", "libnvidia*", "nvidia-driver*", "nvidia-kernel*", "nvidia-open*")
    names = " ".join([*families, "nvidia-modprobe", "nvidia-persistenced"])
    text = f"Package: {names}\nPin: version {branch}.*\nPin-Priority: 1000\n"
    return package(
        f"nvidia-driver-pinning-{branch}",
        f"{branch}-1",
        arch="all",
        fields={"Provides": "nvidia-driver-pinning", "Conflicts": "nvidia-driver-pinning"},
        files={f"/etc/apt/preferences.d/nvidia-driver-pinning-{branch}": text},
    )


def keyring(suite: str, key: bytes) -> Package:
    """NVIDIA's cuda-keyring: the key, and a source that names it."""
    path = "/usr/share/keyrings/cuda-archive-keyring.gpg"
    source = f"deb [signed-by={path}] http://mirror/compute/cuda/repos/{suite}/x86_64/ /\n"
    return package(
        "cuda-keyring",
        "1.1-1",
        arch="all",
        files={path: key, f"/etc/apt/sources.list.d/cuda-{suite}-x86_64.list": source},
    )


def debian_closed_driver() -> list[Package]:
    """The closed driver of Debian's own archive (non-free)."""
    full, same = f"{DEBIAN_DRIVER}-2", f"(= {DEBIAN_DRIVER}-2)"
    return [
        package("nvidia-driver", full, f"nvidia-kernel-dkms {same}", f"nvidia-smi {same}", f"libcuda1 {same}"),
        kernel_modules(DEBIAN_DRIVER, "2", False, name="nvidia-kernel-dkms"),
        package("nvidia-kernel-support", full),
        package(
            "nvidia-smi",
            full,
            f"libnvidia-ml1 {same}",
            files={"/usr/bin/nvidia-smi": stand_in("nvidia-smi", VERSION=DEBIAN_DRIVER)},
        ),
        package("libcuda1", full),
        package("libnvidia-ml1", full),
    ]


# CUDA toolkit

TOOLKIT_GROUPS = {
    "cuda-compiler-12-9": ["cuda-nvcc-12-9", "cuda-cuobjdump-12-9", "cuda-nvprune-12-9", "cuda-cuxxfilt-12-9"],
    "cuda-libraries-12-9": ["cuda-cudart-12-9", "cuda-nvrtc-12-9", "libcublas-12-9"],
    "cuda-libraries-dev-12-9": ["cuda-cudart-dev-12-9", "cuda-cccl-12-9", "libcublas-dev-12-9"],
    "cuda-tools-12-9": ["cuda-command-line-tools-12-9"],
}


def toolkit_12_9() -> list[Package]:
    version, config = "12.9.1-1", "12.9.79-1"
    leaves = {name for group in TOOLKIT_GROUPS.values() for name in group} - {"cuda-nvcc-12-9", "cuda-cudart-12-9"}
    root = "/usr/local/cuda-12.9"
    return [
        package("cuda-toolkit-12-9", version, *TOOLKIT_GROUPS, "cuda-nvml-dev-12-9", "cuda-documentation-12-9"),
        *[package(name, version, *members) for name, members in TOOLKIT_GROUPS.items()],
        *[
            package(name, version)
            for name in sorted(
                leaves | {"cuda-nvml-dev-12-9", "cuda-documentation-12-9", "cuda-crt-12-9", "cuda-nvvm-12-9"}
            )
        ],
        package(
            "cuda-nvcc-12-9",
            "12.9.86-1",
            "build-essential | gcc",
            "cuda-crt-12-9",
            "cuda-nvvm-12-9",
            "cuda-cudart-dev-12-9",
            files={f"{root}/bin/nvcc": stand_in("nvcc"), f"{root}/version.json": stand_in("version.json")},
        ),
        package(
            "cuda-cudart-12-9",
            config,
            "cuda-toolkit-12-9-config-common",
            files={f"{root}/lib64/libcudart.so.12": "stand-in\n"},
        ),
        package(
            "cuda-toolkit-12-9-config-common",
            config,
            "cuda-toolkit-12-config-common",
            arch="all",
            scripts={
                "postinst": f"ln -sfn {root} /etc/alternatives/cuda; ln -sfn /etc/alternatives/cuda /usr/local/cuda"
            },
        ),
        package("cuda-toolkit-12-config-common", config, "cuda-toolkit-config-common", arch="all"),
        package("cuda-toolkit-config-common", config, arch="all"),
        package("cuda-runtime-12-9", version, "cuda-drivers", "cuda-libraries-12-9"),
        package("cuda-12-9", version, "cuda-toolkit-12-9", "cuda-runtime-12-9"),
    ]


def toolkit_13() -> list[Package]:
    return [
        package("cuda-toolkit-13-0", "13.0.2-1"),
        package("cuda-13-0", "13.0.2-1", "cuda-toolkit-13-0", "cuda-drivers"),
        package("cuda", "13.0.2-1", "cuda-13-0"),
    ]


# Container toolkit


def container_toolkit(version: str) -> list[Package]:
    full = f"{version}-1"
    units = "/usr/lib/systemd/system/nvidia-cdi-refresh"
    return [
        package(
            "nvidia-container-toolkit",
            full,
            f"nvidia-container-toolkit-base (= {full})",
            f"libnvidia-container-tools (>= {full})",
            "libnvidia-container-tools (<< 2.0.0)",
            files={"/usr/bin/nvidia-container-runtime-hook": "#!/bin/sh\nexit 0\n"},
        ),
        package(
            "nvidia-container-toolkit-base",
            full,
            "python3",
            files={
                "/usr/bin/nvidia-ctk": stand_in("nvidia-ctk", VERSION=version),
                "/usr/bin/nvidia-cdi-hook": "#!/bin/sh\n# Stand-in (test lab).\nexit 0\n",
                "/usr/bin/nvidia-container-runtime": stand_in("nvidia-container-runtime", VERSION=version),
                f"{units}.service": stand_in("nvidia-cdi-refresh.service"),
                f"{units}.path": stand_in("nvidia-cdi-refresh.path"),
            },
            scripts={"postinst": stand_in("container-toolkit.postinst")},
        ),
        package(
            "libnvidia-container-tools",
            full,
            f"libnvidia-container1 (>= {full})",
            files={
                "/usr/bin/nvidia-container-cli": f"#!/bin/sh\n# Stand-in (test lab).\necho cli-version: {version}\n"
            },
        ),
        package("libnvidia-container1", full),
    ]


# Docker


def docker_packages(trees: Path, codename: str) -> list[Package]:
    """Docker's packages with Debian 13's build of the same programs inside (`trees`, see repack_docker.sh)."""
    version = json.loads((trees / "versions.json").read_text())
    suffix = f"-1~debian.{DOCKER_SUITES[codename]}~{codename}"

    def files(name: str) -> dict[str, str | bytes]:
        root = trees / codename / name
        return {f"/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    start, stop = stand_in("start_service.postinst"), stand_in("stop_service.prerm")
    older = "docker.io, docker-engine"
    return [
        package(
            "docker-ce",
            f"5:{version['docker']}{suffix}",
            "containerd.io (>= 1.7.24)",
            "docker-ce-cli",
            "iptables",
            "libsystemd0",
            fields={"Conflicts": older, "Replaces": older, "Recommends": "docker-buildx-plugin, docker-compose-plugin"},
            files=files("docker-ce"),
            scripts={
                "postinst": start.replace("@UNITS@", "docker.socket docker.service"),
                "prerm": stop.replace("@UNITS@", "docker.service docker.socket"),
            },
        ),
        package(
            "docker-ce-cli",
            f"5:{version['docker']}{suffix}",
            fields={"Conflicts": "docker-cli, docker.io", "Replaces": "docker-cli"},
            files=files("docker-ce-cli"),
        ),
        package(
            "containerd.io",
            f"{version['containerd']}{suffix}",
            "libseccomp2",
            fields={"Conflicts": "containerd, runc", "Replaces": "containerd, runc", "Provides": "containerd, runc"},
            files=files("containerd.io"),
            scripts={
                "postinst": start.replace("@UNITS@", "containerd.service"),
                "prerm": stop.replace("@UNITS@", "containerd.service"),
            },
        ),
        package("docker-buildx-plugin", f"{version['buildx']}{suffix}", files=files("docker-buildx-plugin")),
        package(
            "docker-compose-plugin",
            f"{version['compose']}{suffix}",
            fields={"Conflicts": "docker-compose-v2"},
            files=files("docker-compose-plugin"),
        ),
    ]


# Kernel


def machine(kernel: str) -> list[Package]:
    """mokutil, and what dkms looks at in the header package of the running kernel."""
    root = f"/usr/src/linux-headers-{kernel}"
    config = 'CONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_HASH="sha256"\n'
    mokutil = package("mokutil", "2:0.7.2", files={"/usr/bin/mokutil": stand_in("mokutil")})
    return [
        mokutil,
        package(
            f"linux-headers-{kernel}",
            "1",
            fields={"Source": HEADERS_SOURCE},
            files={
                f"{root}/.config": config,
                f"{root}/include/config/auto.conf": config,
                f"{root}/include/generated/utsrelease.h": f'#define UTS_RELEASE "{kernel}"\n',
                f"{root}/Makefile": "# Stand-in (test lab).\n",
                f"{root}/scripts/sign-file": stand_in("sign-file"),
                f"/usr/lib/modules/{kernel}/build": Link(root),
            },
        ),
    ]


# All repositories


def inputs(kernel: str, trees: Path) -> str:
    """A name for everything that the repositories are made from."""
    sources = sorted(path for path in Path(__file__).parent.rglob("*") if path.is_file() and path.suffix != ".pyc")
    contents = [path.read_bytes() for path in [*sources, trees / "versions.json"]]
    return hashlib.sha256(b"\0".join([kernel.encode(), *contents])).hexdigest()


def build(root: Path, kernel: str, trees: Path) -> bool:
    """Write every repository below `root`, signed with keys of this checkout; False if they are there."""
    complete = root / "complete"
    if complete.exists() and complete.read_text() == inputs(kernel, trees):
        return False
    shutil.rmtree(root, ignore_errors=True)
    keys_home = root.with_name("signing")
    keys = {
        name: Key(keys_home / name, f"Test lab, stand-in for {name}")
        for name in ("nvidia", "docker", "libnvidia-container", "wrong")
    }
    for suite in sorted({*DRIVERS, *TOOLKIT_12_9}):
        packages = [item for version in DRIVERS.get(suite, []) for item in driver(version)]
        packages += [pinning(branch) for branch in PINNING.get(suite, [])]
        packages += toolkit_12_9() if suite in TOOLKIT_12_9 else []
        packages += [*toolkit_13(), keyring(suite, keys["nvidia"].keyring)]
        repository = root / "compute/cuda/repos" / suite / "x86_64"
        write_flat(repository, packages, keys["nvidia"], Origin="NVIDIA", Label="NVIDIA CUDA")
        (repository / "lab.pub").write_bytes(keys["nvidia"].public)
    toolkits = [item for version in CONTAINER_TOOLKITS for item in container_toolkit(version)]
    write_flat(
        root / "libnvidia-container/stable/deb/amd64",
        toolkits,
        keys["libnvidia-container"],
        Origin="NVIDIA",
        Label="libnvidia-container",
    )
    (root / "libnvidia-container/gpgkey").write_bytes(keys["libnvidia-container"].public)
    for codename in DOCKER_SUITES:
        write_suite(
            root / "linux/debian",
            codename,
            "stable",
            docker_packages(trees, codename),
            keys["docker"],
            Origin="Docker",
            Label="Docker CE",
        )
    (root / "linux/debian/gpg").write_bytes(keys["docker"].public)
    write_flat(root / "debian-non-free", debian_closed_driver(), keys["nvidia"], Origin="Debian", Label="Debian")
    write_flat(root / "kernel", machine(kernel), keys["nvidia"], Origin="Test lab", Label="Test lab")
    (root / "wrong.pub").write_bytes(keys["wrong"].public)
    (root / "keys.json").write_text(json.dumps({name: key.fingerprint for name, key in keys.items()}))
    for key in keys.values():
        key.close()
    complete.write_text(inputs(kernel, trees))
    return True


def role_variables(root: Path) -> dict[str, str]:
    """The variables by which the roles use the mirror at http://mirror/ in place of the publishers' repositories."""
    keys = json.loads((root / "keys.json").read_text())
    return {
        "gpu_host_cuda_repository_url": "http://mirror/compute/cuda/repos",
        "gpu_host_cuda_repository_key_url": "http://mirror/compute/cuda/repos/debian12/x86_64/lab.pub",
        "gpu_host_cuda_repository_key_fingerprint": keys["nvidia"],
        "docker_engine_repository_url": "http://mirror/linux/debian",
        "docker_engine_repository_key_url": "http://mirror/linux/debian/gpg",
        "docker_engine_repository_key_fingerprint": keys["docker"],
        "nvidia_container_toolkit_repository_url": "http://mirror/libnvidia-container/stable/deb",
        "nvidia_container_toolkit_repository_key_url": "http://mirror/libnvidia-container/gpgkey",
        "nvidia_container_toolkit_repository_key_fingerprint": keys["libnvidia-container"],
        "lab_wrong_key_url": "http://mirror/wrong.pub",
    }
