#!/usr/bin/env python3
"""Write a shared object that holds made-up GPU code: `write_gpu_code.py OUT CODE...`, CODE as in sm_120a, compute_90.

The file is a well-formed ELF file whose section `.nv_fatbin` lists these codes as NVIDIA's compiler does. What stands
where the kernels would be is a line of text. Nothing can load it: it is there to be read.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

CODE = re.compile(r"(sm|compute)_(\d+)([af]?)")
KINDS = {"compute": 1, "sm": 2}
SUFFIX_FLAGS = {"": 0, "a": 1 << 20, "f": 1 << 21}
FLAGS_64_BIT_LINUX = 0x11
PAYLOAD = b"made-up GPU code, not a kernel\n".ljust(32, b"\0")
MACHINES = {"amd64": 62, "arm64": 183}


def fat_binary(codes: Iterable[str]) -> bytes:
    """One container with an entry for each code."""
    entries = b""
    for code in codes:
        match = CODE.fullmatch(code)
        if not match:
            raise ValueError(f"{code!r} is no GPU code such as sm_120, sm_100f, sm_90a or compute_120")
        kind, architecture, suffix = match.groups()
        flags = FLAGS_64_BIT_LINUX | SUFFIX_FLAGS[suffix]
        entries += struct.pack("<HHIQIIIIIIQQQ", KINDS[kind], 0x101, 64, len(PAYLOAD), 0, 0, 0x10008,
                               int(architecture), 0, 0, flags, 0, 0)  # fmt: skip
        entries += PAYLOAD
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def elf(sections: dict[str, bytes], machine: str = "amd64") -> bytes:
    """A shared object with these sections."""
    header_size = section_header_size = 64
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])
    contents, table = b"", bytes(section_header_size)
    for name, content in [*sections.items(), (".shstrtab", names)]:
        contents += bytes(-len(contents) % 8)
        kind = 3 if name == ".shstrtab" else 1
        table += struct.pack("<IIQQQQIIQQ", names.index(b"\0" + name.encode() + b"\0") + 1, kind, 0, 0,
                             header_size + len(contents), len(content), 0, 0, 8, 0)  # fmt: skip
        contents += content
    contents += bytes(-len(contents) % 8)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, MACHINES[machine], 1, 0, 0, header_size + len(contents), 0, header_size,
                          0, 0, section_header_size, len(sections) + 2, len(sections) + 1)  # fmt: skip
    return header + contents + table


def elf_with_gpu_code(codes: Iterable[str], machine: str = "amd64") -> bytes:
    """A shared object with these codes; without any, one that has no section for them."""
    codes = list(codes)
    return elf({".nv_fatbin": fat_binary(codes)} if codes else {}, machine)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        Path(sys.argv[1]).write_bytes(elf_with_gpu_code(sys.argv[2:]))
    except ValueError as error:
        sys.exit(f"write_gpu_code.py: {error}")


if __name__ == "__main__":
    main()
