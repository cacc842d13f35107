"""Runs while an image is built: `list NAME` prints what the installed package NAME requires, with the texts of
replacements.json replaced; `unwanted` prints the installed packages that are of the other CUDA major."""

import importlib.metadata
import json
import os
import re
import sys


def requirements(required, replace):
    """Requirement lines without those of extras."""
    lines = []
    for line in required or []:
        requirement, _, marker = line.partition(";")
        if re.search(r"\bextra\b", marker):
            continue
        for old, new in replace.items():
            requirement = requirement.replace(old, new)
        lines.append(requirement.strip() + (" ; " + marker.strip() if marker else ""))
    return lines


def unwanted(names, endings):
    """The names that end in one of `endings`, as pip spells names."""
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    return sorted(name for name in normal if name.endswith(tuple(endings)))


def main():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "replacements.json"), encoding="utf-8") as file:
        recipe = json.load(file)
    if sys.argv[1] == "list":
        lines = requirements(importlib.metadata.requires(sys.argv[2]), recipe["replace"])
    else:
        names = [found.metadata["Name"] for found in importlib.metadata.distributions()]
        lines = unwanted([name for name in names if name], recipe["unwanted"])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
