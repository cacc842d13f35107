"""The module with a stand-in for the docker program on PATH, which answers from files that a test made up."""

import json
import os
import sys
from pathlib import Path

import pytest

DOCKER = """
home = Path(os.environ["FAKE_HOME"])
with open(home / "asked", "a") as asked:
    print(sys.argv[1], file=asked)
if sys.argv[1] == "image":
    if not (home / sys.argv[3]).exists():
        sys.exit("Error: No such image: " + sys.argv[3])
    print((home / sys.argv[3]).read_text())
elif sys.argv[1] == "run":
    os.execv(sys.executable, [sys.executable, *sys.argv[sys.argv.index("-B") + 1:]])
"""
LIBRARIES = [{"name": "torch", "files": ["torch/lib/libtorch_cuda.so"]}]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport os, sys\nfrom pathlib import Path\n{DOCKER}")
    program.chmod(0o755)
    return tmp_path


@pytest.fixture
def read(run_module, home, write_gpu_code):
    """Run the module on images that the stand-in has; its "containers" have the made-up packages of the test."""
    library = home / "packages/torch/lib/libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(write_gpu_code.elf_with_gpu_code(["sm_90", "sm_120"]))
    described = {"RepoDigests": [], "Architecture": "amd64", "Size": 1, "Config": {"Env": ["CUDA_VERSION=12.9.1"]}}
    for name in ("one", "two"):
        (home / name).write_text(json.dumps([described | {"Id": f"sha256:{name}"}]))
    environment = {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "FAKE_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[2] / ".collections"), str(home / "packages")]
        ),
    }

    def run(*references: str, environment=environment, **options) -> dict:
        images = [{"reference": reference, "libraries": LIBRARIES} for reference in references]
        return run_module("image_gpu_archs", environment=environment, images=images, **options)

    return run


def asked(home: Path) -> list[str]:
    return (home / "asked").read_text().split()


@pytest.mark.parametrize("check", [False, True])
def test_reads_all_images_and_changes_nothing(read, home, check):
    result = read("one", "two", check=check)
    assert result["changed"] is False
    assert [image["reference"] for image in result["images"]] == ["one", "two"]
    for image in result["images"]:
        assert image["cuda"] == "12.9"
        assert image["libraries"][0]["codes"] == ["sm_90", "sm_120"]
        assert image["libraries"][0]["path"].endswith("packages/torch/lib/libtorch_cuda.so")
    assert asked(home) == ["image", "run", "image", "run"]


def test_a_second_run_starts_no_container(read, home):
    cache = str(home / "var/cache.json")
    first = read("one", "two", cache=cache)
    (home / "asked").unlink()
    assert read("two", "one", cache=cache)["images"] == first["images"][::-1]
    assert asked(home) == ["image", "image"]


def test_an_image_that_is_not_there(read):
    result = read("one", "three")
    assert result["failed"]
    assert result["msg"] == "three is not on this host; pull, build or load it first."


def test_a_broken_library_is_named(read, home):
    library = home / "packages/torch/lib/libtorch_cuda.so"
    library.write_bytes(library.read_bytes()[:-10])
    result = read("one")
    assert result["failed"]
    assert str(library) in result["msg"]
    assert "truncated" in result["msg"]


def test_without_docker(read, home):
    (home / "bin/docker").unlink()
    empty = {"PATH": str(home / "bin"), "PYTHONPATH": str(Path(__file__).resolve().parents[2] / ".collections")}
    result = read("one", environment=empty)
    assert result["failed"]
    assert "docker is not installed" in result["msg"]


def test_a_cache_that_cannot_be_written(read, home):
    (home / "file").touch()
    result = read("one", cache=str(home / "file/cache.json"))
    assert result["failed"]
    assert str(home / "file") in result["msg"]
