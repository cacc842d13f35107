"""Which GPU code a library holds, read from its CUDA fat binaries; no GPU, no CUDA and no library is needed for it.

Runs in two places: imported on a host (Python 3.9), and inside an image under the image's own Python (3.8 or later),
which gets this file on standard input: `python3 -I - '[{"name": ..., "files": [...]}]' < cuda_fatbin.py` prints JSON.

The format is NVIDIA's and not published. A section `.nv_fatbin` (`__nv_relfatbin` for relocatable device code) holds
containers, one per compiled source file: a header of 16 bytes (magic, version, size of the header, size of the rest),
then entries. Of an entry's header count: kind at 0, size of the header at 4, size of the content at 8, architecture at
28, flags at 40. Bit 20 of the flags is the suffix `a`, bit 21 the suffix `f`. The header says this of compressed
entries too, so that contents are never read. Checked against `cuobjdump --list-elf --list-ptx` of CUDA 13.4 on wheels
of PyPI and on libraries made by nvcc 13.0. github.com/GrigoryEvko/nvopen-tools fatbin/FORMAT_SPECIFICATION.md has the
layout, too.
"""

from __future__ import annotations

import collections
import glob
import json
import mmap
import os
import re
import struct
import sys
from typing import Any, Iterator, Union

Content = Union[bytes, mmap.mmap]

SECTIONS = (b".nv_fatbin", b"__nv_relfatbin")
MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER = struct.Struct("<4sHHQ")
ENTRY = struct.Struct("<HHIQ12xI8xQ16x")
PTX, CUBIN = 1, 2
NAMES = {PTX: "compute", CUBIN: "sm"}  # other kinds (intermediate code for the linker) run on nothing
SPECIFIC, FAMILY = 1 << 20, 1 << 21
SECTION = struct.Struct("<IIQQQQIIQQ")
NO_CONTENT = 8
IN_SECTION_0 = 0xFFFF


class FatbinError(ValueError):
    """The file is no library that this can read; the message says why."""


def gpu_code(path: str) -> list[str]:
    """The codes of the library at `path`, such as `["sm_90a", "sm_120", "compute_120"]`; FatbinError, OSError."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise FatbinError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return library_codes(content)


def library_codes(content: Content) -> list[str]:
    """The codes of a library. PTX counts only where every part has it: vLLM compiles its Marlin kernels alone with PTX
    for 8.0, and that makes nothing else of the library run on a later GPU."""
    found = collections.Counter()
    parts = 0
    for offset, size in _fatbin_sections(content):
        for codes in _containers(content, offset, offset + size):
            parts += bool(codes)
            found.update(codes)
    return sorted((code for code in found if code[0] == "s" or found[code] == parts), key=_order)


def _order(code: str) -> tuple[bool, int, str]:
    kind, architecture, suffix = re.fullmatch(r"([a-z]+)_(\d+)([af]?)", code).groups()
    return kind != "sm", int(architecture), suffix


def _fatbin_sections(content: Content) -> list[tuple[int, int]]:
    """Offset and size of the sections that hold fat binaries."""
    if content[:4] != b"\x7fELF":
        raise FatbinError("not an ELF file")
    if content[4:6] != b"\x02\x01":
        raise FatbinError("not a 64-bit little-endian ELF file")
    if len(content) < 64:
        raise FatbinError("truncated within the ELF header")
    (table,) = struct.unpack_from("<Q", content, 40)
    entry_size, count, names = struct.unpack_from("<HHH", content, 58)
    if not table:
        raise FatbinError("the ELF file has no section table")
    if entry_size != SECTION.size:
        raise FatbinError(f"the ELF file's section table has entries of {entry_size} bytes")

    def section(index: int) -> tuple[int, ...]:
        start = table + index * SECTION.size
        if start + SECTION.size > len(content):
            raise FatbinError("truncated within the section table")
        name, kind, _, _, offset, size, link = SECTION.unpack_from(content, start)[:7]
        if index and kind != NO_CONTENT and offset + size > len(content):
            raise FatbinError("truncated within a section")
        return name, kind, offset, size, link

    if not count or names == IN_SECTION_0:
        first = section(0)
        count, names = count or first[3], first[4] if names == IN_SECTION_0 else names
    _, _, names_offset, names_size, _ = section(names)
    found = []
    for index in range(1, count):
        name, kind, offset, size, _ = section(index)
        start = names_offset + name
        known = any(content[start : start + len(known) + 1] == known + b"\0" for known in SECTIONS)
        if known and name < names_size and kind != NO_CONTENT:
            found.append((offset, size))
    return found


def _containers(content: Content, position: int, end: int) -> Iterator[set[str]]:
    """The set of codes of each container between two offsets."""
    while True:
        position = content.find(MAGIC, position, end)  # zeros stand between containers
        if position < 0:
            return
        if position + CONTAINER.size > end:
            raise FatbinError("truncated within the header of a fat binary")
        _, _, header_size, size = CONTAINER.unpack_from(content, position)
        first, last = position + header_size, position + header_size + size
        if header_size < CONTAINER.size or last > end:
            raise FatbinError("a fat binary reaches beyond its section")
        yield _entries(content, first, last)
        position = last


def _entries(content: Content, position: int, end: int) -> set[str]:
    codes = set()
    while position < end:
        if position + ENTRY.size > end:
            raise FatbinError("truncated within an entry of a fat binary")
        kind, _, header_size, size, architecture, flags = ENTRY.unpack_from(content, position)
        if header_size < ENTRY.size or position + header_size + size > end:
            raise FatbinError("an entry reaches beyond its fat binary")
        if kind in NAMES:
            if not 10 <= architecture <= 999:
                raise FatbinError(f"a fat binary names the architecture {architecture}")
            suffix = "a" if flags & SPECIFIC else "f" if flags & FAMILY else ""
            codes.add(f"{NAMES[kind]}_{architecture}{suffix}")
        position += header_size + size
    return codes


def find_libraries(roots: list[str], libraries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of `libraries` ({name, files}) holds: `{name, path, codes}` per file that is there, and one with path
    None where none is. Of several installations the first of `roots` counts. `error` says why a file is unreadable."""
    found = []
    for library in libraries:
        paths = {}
        for root in roots:
            for pattern in library["files"]:
                for path in sorted(glob.glob(os.path.join(glob.escape(root), pattern))):
                    paths.setdefault(os.path.relpath(path, root), path)
        for path in paths.values():
            entry = {"name": library["name"], "path": path, "codes": []}
            try:
                entry["codes"] = gpu_code(path)
            except FatbinError as error:
                entry["error"] = str(error)
            except OSError as error:
                entry["error"] = error.strerror or str(error)
            found.append(entry)
        if not paths:
            found.append({"name": library["name"], "path": None, "codes": []})
    return found


def find_torch(roots: list[str]) -> dict[str, str]:
    """Version and CUDA of the first torch in `roots`, as in torch/version.py; empty where there is none."""
    for root in roots:
        try:
            with open(os.path.join(root, "torch/version.py"), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        found = {}
        for key, name in (("version", "__version__"), ("cuda", "cuda")):
            match = re.search(rf"^{name}(?:\s*:[^=]+)?\s*=\s*'([^']*)'", text, re.MULTILINE)
            if match:
                found[key] = match.group(1)
        return found
    return {}


def python_roots(top: str = "/") -> list[str]:
    """Folders under `top` that Python packages are installed in, of every interpreter and virtual environment."""
    patterns = (
        "usr/local/lib/python3*/*-packages",
        "usr/lib/python3*/*-packages",
        "opt/lib/python3*/*-packages",
        "opt/*/lib/python3*/*-packages",
        "*/*venv/lib/python3*/*-packages",
        "root/*/lib/python3*/*-packages",
    )
    return [path for pattern in patterns for path in sorted(glob.glob(os.path.join(glob.escape(top), pattern)))]


def main() -> None:
    own = [os.path.abspath(path) for path in sys.path if path and os.path.isdir(path)]
    roots = list(dict.fromkeys(own + python_roots()))
    libraries = find_libraries(roots, json.loads(sys.argv[1]))
    print(json.dumps({"libraries": libraries, "torch": find_torch(roots)}))


if __name__ == "__main__":
    main()
