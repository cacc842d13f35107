"""The reader of CUDA fat binaries: made-up libraries of every kind, garbage, and kernel wheels of PyPI."""

import contextlib
import json
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.filter.image_decisions import image_refusals
from ansible_collections.blackwell.serving.plugins.module_utils import cuda_fatbin
from ansible_collections.blackwell.serving.plugins.module_utils.cuda_fatbin import FatbinError, gpu_code, library_codes
from ansible_collections.blackwell.serving.plugins.module_utils.gpu_code import CODE as CODE_PATTERN
from hypothesis import example, given
from hypothesis import strategies as st

REPO_ROOT = Path(__file__).resolve().parents[2]
WHEELS = REPO_ROOT / ".cache/kernel_wheels"
EVERY_SUFFIX = [
    "sm_75",
    "sm_90",
    "sm_90a",
    "sm_100a",
    "sm_100f",
    "sm_120",
    "compute_90a",
    "compute_120",
    "compute_121f",
]
CODE = st.builds(
    "{}_{}{}".format, st.sampled_from(["sm", "compute"]), st.integers(50, 130), st.sampled_from(["", "a", "f"])
)


def fat_binary(entries: list[tuple[int, int, int]], header_size: int = 64) -> bytes:
    """A container with entries of (kind, architecture, flags), and headers that are longer than their known part."""
    content = b"".join(
        struct.pack("<HHIQIIIIIIQQQ", kind, 0x101, header_size, 8, 0, 0, 0, arch, 0, 0, flags, 0, 0)
        + bytes(header_size - 64)
        + b"content."
        for kind, arch, flags in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def entry_field(library: bytes, offset: int, layout: str, value: int) -> bytes:
    """The library with a field of its first entry set."""
    position = library.index(struct.pack("<I", 0xBA55ED50)) + 16 + offset
    size = struct.calcsize(layout)
    return library[:position] + struct.pack(layout, value) + library[position + size :]


def test_every_kind_of_code_and_suffix(write_gpu_code):
    assert library_codes(write_gpu_code.elf_with_gpu_code(reversed(EVERY_SUFFIX))) == EVERY_SUFFIX


@given(codes=st.lists(CODE, unique=True, max_size=12))
def test_what_was_written_is_read(write_gpu_code, codes):
    assert set(library_codes(write_gpu_code.elf_with_gpu_code(codes))) == set(codes)


@pytest.mark.parametrize("section", [".nv_fatbin", "__nv_relfatbin"])
def test_all_containers_of_a_section_count_with_zeros_between_them(write_gpu_code, section):
    parts = [write_gpu_code.fat_binary(["sm_80"]), bytes(24), write_gpu_code.fat_binary(["sm_120a"])]
    assert library_codes(write_gpu_code.elf({".text": b"code", section: b"".join(parts)})) == ["sm_80", "sm_120a"]


def test_a_name_that_only_starts_alike_is_another_section(write_gpu_code):
    library = write_gpu_code.elf({".nv_fatbin_of_mine": write_gpu_code.fat_binary(["sm_80"])})
    assert library_codes(library) == []


def test_a_library_without_gpu_code(write_gpu_code):
    assert library_codes(write_gpu_code.elf_with_gpu_code([])) == []


def test_compressed_entries_and_longer_headers_are_read_too(write_gpu_code):
    """Flags and header size as nvcc 13.0 writes them: zstd (0x8000), and 112 bytes from 10.0 on."""
    content = fat_binary([(2, 120, 0x1208011), (2, 100, 0x1108011)], 112)
    assert library_codes(write_gpu_code.elf({".nv_fatbin": content})) == ["sm_100a", "sm_120f"]


def test_intermediate_code_for_the_linker_runs_on_nothing(write_gpu_code):
    """Kind 8, which nvcc writes for -code=lto_120."""
    content = fat_binary([(8, 120, 0x18011), (2, 90, 0x11)])
    assert library_codes(write_gpu_code.elf({".nv_fatbin": content})) == ["sm_90"]


def test_ptx_of_some_parts_is_no_code_of_the_library(write_gpu_code):
    part, other = write_gpu_code.fat_binary(["sm_80", "compute_80"]), write_gpu_code.fat_binary(["sm_90"])
    assert library_codes(write_gpu_code.elf({".nv_fatbin": part + other})) == ["sm_80", "sm_90"]
    assert library_codes(write_gpu_code.elf({".nv_fatbin": part + part})) == ["sm_80", "compute_80"]


def test_many_sections_are_counted_in_the_first_header(write_gpu_code):
    """ELF: where there are 0xFF00 sections or more, their number and the names' section stand in section 0."""
    library = bytearray(write_gpu_code.elf_with_gpu_code(["sm_120"]))
    (table,) = struct.unpack_from("<Q", library, 40)
    count, names = struct.unpack_from("<HH", library, 60)
    struct.pack_into("<HH", library, 60, 0, 0xFFFF)
    struct.pack_into("<Q", library, table + 32, count)
    struct.pack_into("<I", library, table + 40, names)
    assert library_codes(bytes(library)) == ["sm_120"]


def test_offsets_beyond_4_gib(write_gpu_code, tmp_path):
    """A sparse file: the section and the table lie where 32 bits do not reach."""
    far = 5 << 30
    library = write_gpu_code.elf_with_gpu_code(["sm_90", "sm_120f"])
    (table,) = struct.unpack_from("<Q", library, 40)
    count = struct.unpack_from("<H", library, 60)[0]
    moved = bytearray(library)
    struct.pack_into("<Q", moved, 40, table + far)
    for index in range(1, count):
        (offset,) = struct.unpack_from("<Q", moved, table + index * 64 + 24)
        struct.pack_into("<Q", moved, table + index * 64 + 24, offset + far)
    path = tmp_path / "large.so"
    with path.open("wb") as file:
        file.write(moved[:64])
        file.seek(far + 64)
        file.write(moved[64:])
    assert gpu_code(str(path)) == ["sm_90", "sm_120f"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"#!/bin/sh\n", "not an ELF file"),
        (b"\x7fELF\x01\x01" + bytes(60), "not a 64-bit little-endian"),
        (b"\x7fELF\x02\x02" + bytes(60), "not a 64-bit little-endian"),
        (b"\x7fELF\x02\x01\x01", "truncated within the ELF header"),
        (b"\x7fELF\x02\x01" + bytes(60), "no section table"),
        (b"", "not an ELF file"),
    ],
)
def test_what_is_no_library_is_said(content, why):
    with pytest.raises(FatbinError, match=why):
        library_codes(content)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "why"),
    [
        (4, "<I", 0, "an entry reaches beyond"),
        (8, "<Q", 1 << 60, "an entry reaches beyond"),
        (28, "<I", 7, "architecture 7"),
        (-8, "<Q", 1 << 40, "a fat binary reaches beyond its section"),
        (-8, "<Q", 40, "truncated within an entry"),
        (-10, "<H", 0, "a fat binary reaches beyond its section"),
    ],
)
def test_a_broken_fat_binary_is_said(write_gpu_code, offset, layout, value, why):
    with pytest.raises(FatbinError, match=why):
        library_codes(entry_field(write_gpu_code.elf_with_gpu_code(["sm_120"]), offset, layout, value))


@given(data=st.data())
def test_a_truncated_library_is_never_taken_for_a_whole_one(write_gpu_code, data):
    library = write_gpu_code.elf_with_gpu_code(["sm_90", "sm_120"])
    with pytest.raises(FatbinError):
        library_codes(library[: data.draw(st.integers(0, len(library) - 1))])


@given(content=st.binary(max_size=300))
@example(content=b"\x7fELF\x02\x01" + b"\xff" * 200)
def test_garbage_raises_nothing_but_the_declared_error(content):
    for candidate in (content, b"\x7fELF\x02\x01" + content):
        with contextlib.suppress(FatbinError):
            library_codes(candidate)


@given(position=st.integers(0, 400), value=st.binary(min_size=1, max_size=8))
def test_a_damaged_library_raises_nothing_but_the_declared_error(write_gpu_code, position, value):
    library = write_gpu_code.elf_with_gpu_code(["sm_90", "sm_120"])
    damaged = library[:position] + value + library[position + len(value) :]
    with contextlib.suppress(FatbinError):
        assert all(CODE_PATTERN.fullmatch(code) for code in library_codes(damaged))


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.so").touch()
    with pytest.raises(FatbinError, match="empty"):
        gpu_code(str(tmp_path / "empty.so"))


def packages(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def test_the_first_installation_counts_and_each_of_its_files(write_gpu_code, tmp_path):
    old, new = (write_gpu_code.elf_with_gpu_code([code]) for code in ("sm_90", "sm_120"))
    first = packages(tmp_path / "first", {"vllm/_C.abi3.so": new})
    second = packages(tmp_path / "second", {"vllm/_C.abi3.so": old, "vllm/_C_stable_libtorch.abi3.so": old})
    files = ["vllm/_C_stable_libtorch.abi3.so", "vllm/_C.abi3.so"]
    found = cuda_fatbin.find_libraries([first, second], [{"name": "vllm/_C", "files": files}])
    assert [(Path(each["path"]).relative_to(tmp_path).as_posix(), each["codes"]) for each in found] == [
        ("first/vllm/_C.abi3.so", ["sm_120"]),
        ("second/vllm/_C_stable_libtorch.abi3.so", ["sm_90"]),
    ]


def test_missing_and_broken_libraries_are_told_apart(tmp_path):
    root = packages(tmp_path, {"torch/lib/libtorch_cuda.so": b"\x7fELF"})
    libraries = [{"name": "torch", "files": ["torch/lib/libtorch_cuda.so"]}, {"name": "other", "files": ["other.so"]}]
    torch, other = cuda_fatbin.find_libraries([root], libraries)
    assert torch["path"].endswith("libtorch_cuda.so")
    assert "64-bit" in torch["error"]
    assert other == {"name": "other", "path": None, "codes": []}


# The lines of torch/version.py of the wheels torch 2.8.0 (PyPI) and 1.13 (without the annotation)
@pytest.mark.parametrize("line", ["cuda: Optional[str] = '12.8'", "cuda = '12.8'"])
def test_version_and_cuda_of_torch(tmp_path, line):
    root = packages(tmp_path, {"torch/version.py": f"__version__ = '2.8.0+cu128'\n{line}\n".encode()})
    assert cuda_fatbin.find_torch([str(tmp_path / "none"), root]) == {"version": "2.8.0+cu128", "cuda": "12.8"}


def test_a_torch_without_cuda(tmp_path):
    root = packages(tmp_path, {"torch/version.py": b"__version__ = '2.8.0+cpu'\ncuda: Optional[str] = None\n"})
    assert cuda_fatbin.find_torch([root]) == {"version": "2.8.0+cpu"}


def test_runs_by_itself_on_standard_input(write_gpu_code, tmp_path):
    root = packages(tmp_path / "lib", {"sgl_kernel/common_ops.abi3.so": write_gpu_code.elf_with_gpu_code(["sm_120a"])})
    program = Path(cuda_fatbin.__file__).read_bytes()
    libraries = json.dumps([{"name": "sgl_kernel", "files": ["sgl_kernel/common_ops.abi3.so"]}])
    done = subprocess.run(
        [sys.executable, "-", libraries], input=program, capture_output=True, env={"PYTHONPATH": root}, check=True
    )
    (found,) = json.loads(done.stdout)["libraries"]
    assert found["codes"] == ["sm_120a"]


def kernel_wheel(version: str) -> Path:
    """Folder with sgl_kernel's libraries but FlashAttention, from the wheel on PyPI; downloaded once."""
    folder = WHEELS / f"sgl_kernel-{version}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", part]
        platform = ["--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.10", "--abi=abi3"]
        subprocess.run([*map(str, command), *platform, f"sgl-kernel=={version}"], check=True)
        (wheel,) = part.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract("sgl_kernel/common_ops.abi3.so", part)
        wheel.unlink()
        part.rename(folder)
    return folder


@pytest.mark.package_index
@pytest.mark.parametrize(("version", "runs"), [("0.3.5", False), ("0.3.9.post2", True)])
def test_kernel_wheels_of_pypi(timing, version, runs):
    """sgl-kernel 0.3.5 (308 MB) has nothing for capability 12.0, 0.3.9.post2 (379 MB) has."""
    folder = kernel_wheel(version)
    path = yaml.safe_load((REPO_ROOT / "catalog/start_path.yml").read_text("utf-8"))["start_path"]["sglang"]
    library = next(each for each in path if each["name"] == "sgl_kernel")
    started = time.monotonic()
    found = cuda_fatbin.find_libraries([str(folder)], [library])
    timing(f"GPU code of sgl-kernel {version}", time.monotonic() - started, 20)
    catalogued = yaml.safe_load((REPO_ROOT / "catalog/images.yml").read_text("utf-8"))["images"]["sglang-0.5.2"]
    assert (found[0]["codes"] == catalogued["libraries"]["sgl-kernel 0.3.9.post2"]) == runs
    image = {"reference": "made-up:1", "id": "sha256:1", "digests": [], "architecture": "amd64", "cuda": "12.8"}
    others = [{"name": each["name"], "path": "/made-up", "codes": ["sm_120"]} for each in path if each is not library]
    refusals = image_refusals(
        {**image, "libraries": [*found, *others]},
        key="made-up:1",
        engine="sglang",
        capabilities=["12.0"],
        driver="580.95.05",
    )
    assert [("sgl_kernel" in text, "sm_120" in text) for text in refusals] == ([] if runs else [(True, True)])
