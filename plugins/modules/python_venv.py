#!/usr/bin/python
"""Make a virtual environment hold exactly pinned packages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_venv
short_description: Make a virtual environment that holds pinned packages
version_added: 0.2.0
description:
  - Makes the virtual environment where there is none, or where it belongs to another Python than O(python) by now, and
    installs the packages of O(requirements) that it lacks or has in another version. Further packages stay.
  - Nothing is downloaded while all of them are there.
  - pip finds its index as usual, in C(pip.conf) and in the environment.
options:
  path:
    description: The virtual environment.
    type: path
    required: true
  requirements:
    description:
      - Content of a requirements file in which each package is pinned with C(==) and its hashes, dependencies included,
        without environment markers.
    type: str
    required: true
  python:
    description: The interpreter that the environment is made with. It needs the module C(venv).
    type: path
    default: /usr/bin/python3
  index_url:
    description: The package index, where it is not the one that pip is configured with.
    type: str
    default: ""
  find_links:
    description:
      - A directory on the host with the packages as wheels. With it, no index is asked; the hashes count all the same.
    type: path
    default: ""
  proxy:
    description:
      - Proxies for downloads, with the keys C(http), C(https) and C(no_proxy); without them, those of the environment.
      - A play's C(environment) is no place for a password, because sudo writes it into its log.
    type: dict
    default: {}
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Install python-on-whales into an environment of its own
  blackwell.serving.python_venv:
    path: /opt/blackwell-serving/venv
    requirements: "{{ lookup('ansible.builtin.file', 'python-on-whales.txt') }}"
"""

RETURN = r"""
created:
  description: Whether the environment was, or would be, made anew.
  returned: success
  type: bool
packages:
  description: The pinned packages and the versions that the environment holds.
  returned: success
  type: dict
  sample: {python-on-whales: 0.81.0}
"""

import os
import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.addresses import proxy_environment


def pinned(requirements: str) -> dict[str, str]:
    """Versions by package name; raises ValueError for a line that does not pin one with hashes."""
    versions = {}
    for line in re.sub(r"\s*\\\n\s*", " ", requirements).splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        if not match:
            raise ValueError(f"not a pinned package with hashes: {line[:80]}")
        versions[normalised(match[1])] = match[2]
    return versions


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(site_packages: Path) -> dict[str, str]:
    """Versions by package name, from the names of the *.dist-info directories."""
    found = (
        entry.name[: -len(".dist-info")] for entry in site_packages.glob("*.dist-info") if (entry / "RECORD").exists()
    )
    return {normalised(name): version for name, _, version in (entry.partition("-") for entry in found)}


class Environment:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(module.params["path"])
        self.python: str = module.params["python"]
        release = re.fullmatch(r"python3\.\d+", os.path.basename(os.path.realpath(self.python)))
        self.site_packages = self.path / "lib" / release[0] / "site-packages" if release else None

    def usable(self) -> bool:
        """Whether the environment has pip and belongs to the interpreter as it is now."""
        interpreter = self.path / "bin/python"
        same = os.path.realpath(interpreter) == os.path.realpath(self.python)
        return bool(same and self.site_packages and (self.site_packages / "pip").is_dir())

    def make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        code, out, err = self.module.run_command([self.python, "-m", "venv", "--clear", str(self.path)])
        if code:
            self.module.fail_json(msg=f"{self.python} cannot make {self.path}: {(out + err).strip()}")

    def install(self, requirements: str, index_url: str, find_links: str) -> None:
        source = ["--no-index", "--find-links", find_links] if find_links else []
        with tempfile.NamedTemporaryFile("w", dir=self.module.tmpdir, suffix=".txt") as file:
            file.write(requirements)
            file.flush()
            pip = [str(self.path / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
            code, out, err = self.module.run_command(
                [*pip, *source, "--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", file.name],
                environ_update={
                    **proxy_environment(self.module.params["proxy"]),
                    **({"PIP_INDEX_URL": index_url} if index_url else {}),
                },
            )
        if code:
            self.module.fail_json(msg=f"pip cannot install into {self.path}: {(err or out).strip()}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "index_url": {"type": "str", "default": ""},
            "find_links": {"type": "path", "default": ""},
            "proxy": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        wanted = pinned(module.params["requirements"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    environment = Environment(module)
    create = not environment.usable()
    before = {} if create else installed(environment.site_packages)
    install = any(before.get(name) != version for name, version in wanted.items())

    if not module.check_mode:
        if create:
            environment.make()
            environment = Environment(module)
        if install:
            environment.install(module.params["requirements"], module.params["index_url"], module.params["find_links"])
    after = wanted if module.check_mode else installed(environment.site_packages)
    wrong = [f"{name} {version}" for name, version in wanted.items() if after.get(name) != version]
    if wrong:
        module.fail_json(msg=f"pip ended without an error, but {environment.path} lacks {', '.join(wrong)}.")
    module.exit_json(
        changed=create or install,
        created=create,
        packages={name: after[name] for name in wanted},
        diff={
            "before": "".join(f"{name} {before[name]}\n" for name in wanted if name in before),
            "after": "".join(f"{name} {after[name]}\n" for name in wanted),
            "before_header": str(environment.path),
            "after_header": str(environment.path),
        },
    )


if __name__ == "__main__":
    main()
