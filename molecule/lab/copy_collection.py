#!/usr/bin/env python3
"""Copy the collection and change one text in it: copy_collection.py DIRECTORY FILE OLD NEW.

For tests that show what a wrong figure does. Copies the files that git tracks or would track; OLD must be in FILE once.
"""

import shutil
import subprocess
import sys
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]


def copy(directory: Path) -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    shutil.rmtree(directory, ignore_errors=True)
    for name in filter(None, names):
        if (source := REPO_ROOT / name).is_symlink() or source.is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, directory / name, follow_symlinks=False)


def main(directory: Path, file: str, old: str, new: str) -> None:
    copy(directory)
    text = (directory / file).read_text()
    if text.count(old) != 1:
        sys.exit(f"{file} has {old!r} {text.count(old)} times")
    (directory / file).write_text(text.replace(old, new))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
