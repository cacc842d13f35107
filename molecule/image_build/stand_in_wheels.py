#!/usr/bin/env python3
"""Write stand-ins for the Python packages that the recipe sglang-cu129 installs: stand_in_wheels.py DIRECTORY.

Names, versions and requirements are those of the real packages, as the recipe and sglang-0.5.19-requires.txt name them.
Inside is nothing but made-up GPU code where the engine's kernels would be. DIRECTORY has a folder for each address of
the recipe (pypi, pytorch, sgl_project, github), and `github_for_hopper`, whose kernels are for another GPU.
Runs on a host of the lab.
"""

import re
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from write_gpu_code import elf_with_gpu_code

REQUIREMENTS = Path(__file__).with_name("sglang-0.5.19-requires.txt")
TORCH = "2.13.0+cu129"
KERNELS = "sglang_kernel-0.4.6.post1+cu129-cp310-abi3-manylinux2014_x86_64.whl"
DEEP_GEMM = "sgl_deep_gemm-0.1.7+cu129-py3-none-manylinux2014_x86_64.whl"
# What has parts for both CUDA majors: by an extra each, as on pypi.org. Their requirements are made up.
BY_EXTRA = {
    "flashinfer_python": "0.6.18",
    "humming-kernels": "0.1.12",
}
OTHER_MAJOR = "made-up-parts-cu13"  # what a package of CUDA 12 drags in, and the build takes out again


def write(path: Path, requires: list[str] = [], files: dict[str, bytes] = {}, extras: list[str] = []) -> None:  # noqa: B006
    """A wheel; its name and version are those of the file."""
    name, version, *_, platform = path.stem.split("-")
    folder = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {line}" for line in requires]
    tag = "-".join(path.stem.split("-")[2:])
    contents = {
        **files,
        f"{folder}/METADATA": "\n".join([*metadata, ""]).encode(),
        f"{folder}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: {platform == 'any'}\nTag: {tag}\n".lower()
        .replace("wheel-version", "Wheel-Version")
        .encode(),
    }
    record = "".join(f"{name},,\n" for name in [*contents, f"{folder}/RECORD"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**contents, f"{folder}/RECORD": record.encode()}.items():
            wheel.writestr(name, content)


def in_index(index: Path, name: str, version: str, *more, **options) -> None:
    """A wheel in the folder that an index page is made of (PEP 503)."""
    project = re.sub(r"[-_.]+", "-", name).lower()
    write(index / project / f"{project.replace('-', '_')}-{version}-py3-none-any.whl", *more, **options)


def kernel_library(code: str) -> dict[str, bytes]:
    return {"sgl_kernel/__init__.py": b"", "sgl_kernel/sm100/common_ops.abi3.so": elf_with_gpu_code([code])}


def main() -> None:
    top = Path(sys.argv[1])
    required = [line.split(";")[0].strip() for line in REQUIREMENTS.read_text().splitlines() if line[0] != "#"]
    for text in required:
        name, _, version = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(?:.*?([=>]=)([\w.]+))?.*", text).groups()
        if name not in BY_EXTRA:
            in_index(top / "pypi", name, version or "1", [OTHER_MAJOR] if name == "quack-kernels" else [])
    for name, version in BY_EXTRA.items():
        requires = [f'made-up-{name}-{extra}; extra == "{extra}"' for extra in ("cu12", "cu13")]
        in_index(top / "pypi", name, version, requires, extras=["cu12", "cu13"])
        in_index(top / "pypi", f"made-up-{name}-cu12", "1")
    in_index(top / "pypi", "cuda-python", "12.9.1")
    in_index(top / "pypi", OTHER_MAJOR, "1")
    in_index(
        top / "pypi", "sglang", "0.5.19", [line for line in REQUIREMENTS.read_text().splitlines() if line[0] != "#"]
    )

    torch = {
        "torch/__init__.py": b'class version:\n    cuda = "12.9"\n',
        "torch/version.py": f"__version__ = '{TORCH}'\ncuda = '12.9'\n".encode(),
        "torch/lib/libtorch_cuda.so": elf_with_gpu_code(["sm_90", "sm_120", "compute_120"]),
    }
    in_index(top / "pytorch", "torch", TORCH, files=torch)
    in_index(top / "pytorch", "torchvision", "0.28.0+cu129", ["torch==2.13.0", "numpy", "pillow"])
    in_index(top / "pytorch", "torchaudio", "2.11.0+cu129")
    in_index(top / "sgl_project", "sgl-deep-ep", "0.1.2+cu129")
    for folder, code in {"github": "sm_120a", "github_for_hopper": "sm_90a"}.items():
        write(top / folder / "v0.4.6.post1" / KERNELS, ["torch"], kernel_library(code))
        write(top / folder / "v0.1.7" / DEEP_GEMM)


if __name__ == "__main__":
    main()
