"""What docs/pull.md has a person type and write on a host, as JSON.

page.py REPOSITORY, an address that takes the place of the example's. The answer:
{"commands": [the indented lines, in their order], "files": {path: content}}
"""

import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/pull.md"
SECTION = "\n## On each host, once\n"


def main(repository: str) -> None:
    section = (
        PAGE.read_text()
        .partition(SECTION)[2]
        .partition("\n## ")[0]
        .replace("https://git.example/fleet.git", repository)
    )
    blocks = re.findall(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^# (?=/)", block, flags=re.MULTILINE) if part]
    files = {path: content.rstrip() + "\n" for path, _, content in (part.partition("\n") for part in parts)}
    print(
        json.dumps(
            {
                "commands": re.findall(r"^ {4}(\S.*)$", re.sub(r"(?s)```.*?```", "", section), re.MULTILINE),
                "files": files,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
