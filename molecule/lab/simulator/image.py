#!/usr/bin/env python3
"""Lay out the files of a simulated engine image: `image.py DIRECTORY IMAGE_KEY`, the key as in catalog/images.yml.

Flags come from catalog/engine_flags, the GPU code of the stand-in libraries from catalog/images.yml, sizes from
sizes.yml.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO_ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))

from write_gpu_code import elf_with_gpu_code  # noqa: E402

PACKAGES = "usr/local/lib/python3.12/dist-packages"  # where the real images keep them
HOPPER_ONLY = {"sglang": "sgl_kernel/flash_ops.abi3.so", "vllm": "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"}
PYTHON_PACKAGES = ("engine_simulator", "huggingface_hub")
GENERATORS = {"sglang": "sglang/bench_serving.py"}  # vLLM's is a command of its program
MODULES = {"sglang": "sglang/launch_server.py", "vllm": "vllm/entrypoints/openai/api_server.py"}


def load(path: Path) -> dict:
    import yaml

    return yaml.safe_load(path.read_text())


def library_files(engine: str, version: str, entry: dict) -> dict[str, list[str]]:
    """File -> GPU code, for every library that a start of the engine uses."""
    codes = entry.get("libraries", {})
    torch = next((codes[name] for name in codes if name.startswith("torch ")), entry["gpu_code"])
    files = {"torch/lib/libtorch_cuda.so": torch, HOPPER_ONLY[engine]: ["sm_80", "sm_90a"]}
    if engine == "sglang":
        kernel = next((codes[name] for name in codes if "kernel" in name), entry["gpu_code"])
        return files | {f"sgl_kernel/{folder}/common_ops.abi3.so": kernel for folder in ("sm90", "sm100")}
    suffix = "_stable_libtorch" if int(version.split(".")[1]) >= 20 else ""
    for name in ("_C", "_moe_C"):
        found = next((codes[key] for key in codes if key.startswith(f"vllm/{name}")), entry["gpu_code"])
        files[f"vllm/{name}{suffix}.abi3.so"] = found
    return files | {"vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so": entry["gpu_code"]}


def image_inputs(key: str) -> tuple[dict, list[bytes]]:
    """The image's entry in catalog/images.yml, and the contents of every file that it is made from."""
    entry = load(REPO_ROOT / "catalog/images.yml")["images"][key]
    name = f"{entry['engine']}-{entry['engine_version']}.yml"
    flags = [REPO_ROOT / f"catalog/{folder}/{name}" for folder in ("engine_flags", "generator_flags")]
    sources = [
        *[path for package in PYTHON_PACKAGES for path in sorted((HERE / package).glob("*.py"))],
        HERE / "sizes.yml",
        HERE / "Dockerfile",
        Path(__file__),
    ]
    paths = [*flags, HERE.parent / "write_gpu_code.py", *sources]
    return entry, [json.dumps(entry, default=str).encode(), *[path.read_bytes() for path in paths]]


def write_root(root: Path, key: str) -> dict:
    """The image's files below `root`; returns its entry in catalog/images.yml."""
    entry = load(REPO_ROOT / "catalog/images.yml")["images"][key]
    engine, version = entry["engine"], str(entry["engine_version"])
    packages = root / PACKAGES
    for package in PYTHON_PACKAGES:
        shutil.copytree(HERE / package, packages / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, codes in library_files(engine, version, entry).items():
        (packages / file).parent.mkdir(parents=True, exist_ok=True)
        (packages / file).write_bytes(elf_with_gpu_code(codes))
    torch = next((name.split()[1] for name in entry.get("libraries", {}) if name.startswith("torch ")), "0+simulated")
    (packages / "torch/version.py").write_text(f"__version__ = {torch!r}\ncuda = {entry['cuda']!r}\n")
    module = packages / MODULES[engine]
    module.parent.mkdir(parents=True, exist_ok=True)
    start = "from engine_simulator.main import {0}\n\n{0}({1!r})\n"
    module.write_text(start.format("launch", engine))
    if engine in GENERATORS:
        (packages / GENERATORS[engine]).write_text(start.format("load_generator", engine))
    (packages / engine / "version.py").write_text(f"__version__ = {version!r}\n")
    programs = root / "usr/local/bin"
    programs.mkdir(parents=True)
    for name, text in {
        engine: start.format("command", engine),
        "hf": "import sys\n\nfrom engine_simulator.hub import main\n\nsys.exit(main(sys.argv[1:]))\n",
    }.items():
        (programs / name).write_text(f"#!/usr/bin/python3\n{text}")
        (programs / name).chmod(0o755)
    image = {
        "key": key,
        "engine": engine,
        "version": version,
        "cuda": entry["cuda"],
        "libraries": {**entry.get("libraries", {"torch": entry["gpu_code"]})},
        "generator_flags": load(REPO_ROOT / f"catalog/generator_flags/{engine}-{version}.yml"),
        "flags": load(REPO_ROOT / f"catalog/engine_flags/{engine}-{version}.yml"),
        "sizes": load(HERE / "sizes.yml"),
    }
    share = root / "usr/local/share/engine-simulator"
    share.mkdir(parents=True)
    (share / "image.json").write_text(json.dumps(image, default=str))
    return entry


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_root(Path(sys.argv[1]), sys.argv[2])
