"""Recipes: what fits together, what a change of the inputs does, and what runs inside the image while it is built."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.image_builds import (
    BuildRefused,
    cuda_mismatches,
    recipe,
)
from ansible_collections.blackwell.serving.plugins.plugin_utils.image_build_files import build_of

REPO_ROOT = Path(__file__).resolve().parents[2]
CATALOG = yaml.safe_load((REPO_ROOT / "catalog/builds.yml").read_text("utf-8"))
NAME = "sglang:mine"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, REPO_ROOT / f"templates/image/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_gpu_code(path: Path, *codes: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, REPO_ROOT / "molecule/lab/write_gpu_code.py", path, *codes], check=True)


@pytest.mark.parametrize("key", CATALOG["builds"])
def test_catalogued_recipes_are_whole_and_of_one_cuda(key):
    found = recipe(NAME, {"recipe": key}, CATALOG)
    assert cuda_mismatches(found) == []
    build = build_of(NAME, {"recipe": key}, ["12.0"], "x86_64")
    assert build["dockerfile"].splitlines()[-1].endswith("check_gpu_code.py 12.0")
    assert f"FROM {found['base']}" in build["dockerfile"].splitlines()
    assert "{machine}" not in build["dockerfile"]


@pytest.mark.parametrize("key", CATALOG["builds"])
def test_catalogued_recipes_belong_to_recorded_engine_versions(key, catalog):
    entry = CATALOG["builds"][key]
    assert (entry["engine"], str(entry["engine_version"])) in catalog.flags


def changed(key: str, **changes) -> dict:
    return {"recipe": json.loads(json.dumps(CATALOG["builds"][key])) | changes}


def test_a_kernel_of_another_cuda_major_is_refused_and_named():
    wish = changed("sglang-cu130")
    wheel = CATALOG["builds"]["sglang-cu129"]["steps"][1]["requirements"][0]
    wish["recipe"]["steps"][1]["requirements"] = [wheel]
    with pytest.raises(BuildRefused) as refused:
        recipe(NAME, wish, CATALOG)
    for words in (NAME, wheel.replace("{machine}", "x86_64").partition("_{")[0][:60], "CUDA 12.9", "Nothing was built"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            {"recipe": "sglang-cu129", "base": "nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04"},
            ["nvidia/cuda:13.0.3", "12.9"],
        ),
        (changed("vllm-cu129", cuda="13.0"), ["torch", "cu129"]),
        ({"recipe": "sglang-cu131"}, ["sglang-cu131", "sglang-cu130"]),
        ({"base": "debian:13"}, ["no recipe"]),
        ("sglang-cu129", ["no recipe"]),
        ({"recipe": "sglang-cu129", "bases": "debian"}, ["bases", "base"]),
        (changed("vllm-cu129", colour="red"), ["colour"]),
        (
            {"recipe": "vllm-cu130", "mirrors": {"https://pypi.org": "https://me:secret@mirror.example"}},
            ["password", "history"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(wish, words):
    with pytest.raises(BuildRefused) as refused:
        recipe(NAME, wish, CATALOG)
    for word in words:
        assert word in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_base_of_another_name_and_mirrors_reach_the_dockerfile():
    mirrors = {"https://pypi.org/simple": "http://mirror/pypi/simple", "https://github.com": "http://mirror/github"}
    wish = {"recipe": "sglang-cu129", "base": "base:local", "packages": ["numactl"], "mirrors": mirrors}
    text = build_of(NAME, wish, ["12.0", "9.0"], "aarch64")["dockerfile"]
    assert "FROM base:local\n" in text
    assert "https://github.com" not in text
    assert "https://pypi.org" not in text
    assert "manylinux2014_aarch64.whl" in text
    assert "libnuma1" in text
    assert "numactl" in text
    assert "check_gpu_code.py 12.0 9.0" in text


def test_libraries_that_an_architecture_lacks_are_not_asked_for():
    names = {
        machine: {library["name"] for library in json.loads(build["files"]["libraries.json"])}
        for machine in ("x86_64", "aarch64")
        for build in [build_of(NAME, {"recipe": "sglang-cu130"}, ["9.0"], machine)]
    }
    assert names["x86_64"] - names["aarch64"] == {"FlashAttention 3"}


def test_equal_inputs_have_one_digest_and_each_change_another():
    one = build_of(NAME, {"recipe": "sglang-cu129"}, ["12.0"], "x86_64")
    assert build_of(NAME, {"recipe": "sglang-cu129"}, ["12.0", "12.0"], "x86_64")["inputs"] == one["inputs"]
    others = [
        build_of(NAME, {"recipe": "sglang-cu129", "base": "other:1"}, ["12.0"], "x86_64"),
        build_of(NAME, {"recipe": "sglang-cu129"}, ["9.0"], "x86_64"),
        build_of(NAME, {"recipe": "vllm-cu129"}, ["12.0"], "x86_64"),
        build_of(NAME, changed("sglang-cu129", replace={}), ["12.0"], "x86_64"),
    ]
    assert len({one["inputs"], *(other["inputs"] for other in others)}) == 5


def test_requirements_are_those_of_the_engine_in_its_cuda():
    required = [
        "torch==2.13.0",
        "flashinfer_python[cu13]==0.6.18",
        "cuda-python>=13.0",
        'pytest; extra == "test"',
        'x; sys_platform == "linux"',
    ]
    assert script("engine_requirements").requirements(required, CATALOG["builds"]["sglang-cu129"]["replace"]) == [
        "torch==2.13.0",
        "flashinfer_python[cu12]==0.6.18",
        "cuda-python>=12.9,<13.0",
        'x ; sys_platform == "linux"',
    ]
    assert script("engine_requirements").requirements(None, {}) == []


def test_packages_of_the_other_major_are_found():
    names = ["nvidia_cutlass.dsl-libs_cu13", "nvidia-cudnn-cu12", "torch"]
    assert script("engine_requirements").unwanted(names, ["-cu13"]) == ["nvidia-cutlass-dsl-libs-cu13"]
    assert script("engine_requirements").unwanted(names, []) == []


@pytest.mark.parametrize(
    ("torch", "kernels", "capability", "status", "said"),
    [
        (["sm_120"], ["sm_120a"], "12.0", 0, "sgl_kernel: sm_120a"),
        (["sm_90", "compute_90"], ["sm_120a"], "12.0", 0, "torch: sm_90"),
        (["sm_120"], ["sm_90"], "12.0", 1, "sgl_kernel has no code for capability 12.0"),
        (["sm_90"], ["sm_120"], "12.0", 1, "torch has no code for capability 12.0"),
        (["sm_120"], None, "12.0", 1, "sgl_kernel is not there"),
    ],
)
def test_the_last_step_names_the_library_without_code(tmp_path: Path, torch, kernels, capability, status, said):
    """The files that a build copies into the image, run as it does, over libraries with made-up GPU code."""
    build = build_of(NAME, {"recipe": "sglang-cu129"}, [capability], "x86_64")
    for name, text in build["files"].items():
        (tmp_path / name).write_text(text)
    packages = tmp_path / "site-packages"
    write_gpu_code(packages / "torch/lib/libtorch_cuda.so", *torch)
    if kernels:
        write_gpu_code(packages / "sgl_kernel/sm100/common_ops.abi3.so", *kernels)
    run = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import cuda_fatbin, check_gpu_code;"
        f"cuda_fatbin.python_roots = lambda *_: [{str(packages)!r}]; check_gpu_code.main()"
    )
    done = subprocess.run([sys.executable, "-c", run, capability], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert said in done.stdout
