#!/usr/bin/python
"""Gather the packages that bare hosts of this system would need, as a part of the repositories they come from."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_packages
short_description: Gather packages and all that they need as a part of their repositories
version_added: 0.4.0
description:
  - Resolves each of O(sets) against an empty system, with the package sources of this host and those below O(root), so
    that a host with any minimal installation of this system finds all that it lacks. Nothing is installed, and apt's
    own state and settings on this host stay as they are.
  - Of each repository its signed release file, its indices and the chosen packages are laid out as they lie in the
    original. So apt verifies the publisher's signatures wherever that part of the repository is read.
  - What was downloaded before is not downloaded again.
options:
  directory:
    description: Where the parts of the repositories are laid out. What else is there is removed.
    type: path
    required: true
  root:
    description: A directory with C(etc/apt) below it, whose sources, keys and preferences are used besides the host's.
    type: path
    required: true
  files:
    description:
      - The files of O(root) that count, as paths on a host such as V(/etc/apt/preferences.d/x). Others below it are
        removed, and files of the same names in the host's C(/etc/apt) are not used.
    type: list
    elements: str
    default: []
  keys:
    description: Files of O(root), as paths on a host, by the path that they get in O(directory).
    type: dict
    default: {}
  sets:
    description: Packages that are installed together, as M(blackwell.serving.apt_package_set) takes them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the packages are for.
        type: str
        required: true
      packages:
        description: Names, V(name=version), or dictionaries with C(name) and C(version).
        type: list
        elements: raw
        required: true
  repositories:
    description: Directories by the beginnings of repositories' addresses. Repositories of the distribution need none.
    type: dict
    default: {}
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Gather Docker for hosts like this one
  blackwell.serving.bundle_packages:
    directory: /var/lib/blackwell-serving/bundle-making/packages/debian13-amd64
    root: /var/lib/blackwell-serving/bundle-making/apt
    sets:
      - name: docker
        packages: [docker.io, docker-compose]
"""

RETURN = r"""
packages:
  description: Versions by package name, of all packages that were gathered.
  returned: success
  type: dict
  sample: {docker.io: [26.1.5+dfsg1-9+b9]}
sources:
  description: What a source of each suite of the distribution says, with C(directory) in place of its address.
  returned: success
  type: list
  elements: dict
downloaded_bytes:
  description: How much was downloaded by this run.
  returned: success
  type: int
"""

import filecmp
import glob
import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import apt_bundle
from ansible_collections.blackwell.serving.plugins.module_utils.package_set import (
    chosen_version,
    complaints,
    parse_madison,
    parse_policy,
    parse_wanted,
)

ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
HOST_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources")


class Apt:
    """apt with settings and a state of its own, on a system where nothing is installed."""

    def __init__(self, module: AnsibleModule, root: str) -> None:
        self.module, self.root = module, root
        self.etc = os.path.join(root, "etc/apt")
        self.archives = os.path.join(root, "archives")
        self.options = [
            word
            for option in (
                f"Dir::Etc::SourceList={self.etc}/sources.list",
                f"Dir::Etc::SourceParts={self.etc}/sources.list.d",
                "Dir::Etc::Preferences=/dev/null",
                f"Dir::Etc::PreferencesParts={self.etc}/preferences.d",
                f"Dir::State::Lists={root}/lists",
                f"Dir::State::Status={root}/status",
                f"Dir::State::Extended_states={root}/extended_states",
                f"Dir::Cache={root}/cache",
                "Acquire::PDiffs=false",
                "Acquire::Languages=none",
                "APT::Install-Recommends=false",
                "APT::Sandbox::User=root",
            )
            for word in ("-o", option)
        ]

    def prepare(self, files: list[str]) -> None:
        wanted = {os.path.join(self.root, path.lstrip("/")) for path in files}
        for folder in ("sources.list.d", "preferences.d", "keyrings"):
            os.makedirs(os.path.join(self.etc, folder), exist_ok=True)
        for folder, _, names in os.walk(self.etc):
            for name in names:
                if os.path.join(folder, name) not in wanted:
                    os.unlink(os.path.join(folder, name))
        for pattern in HOST_SOURCES:
            for path in glob.glob(pattern):
                if path not in files:
                    shutil.copy(path, os.path.join(self.root, path.lstrip("/")))
        for folder in ("lists/partial", "cache/archives/partial", "archives"):
            os.makedirs(os.path.join(self.root, folder), exist_ok=True)
        open(os.path.join(self.root, "status"), "w").close()

    def run(self, program: str, *words: str) -> str:
        code, out, err = self.module.run_command([program, *self.options, *words], environ_update=ENVIRONMENT)
        if code:
            verb = next((word for word in words if not word.startswith("-") and "=" not in word), "")
            self.module.fail_json(msg=f"{program} {verb} failed:\n{complaints(out + err)}")
        return out

    def update(self) -> None:
        self.run("apt-get", "-o", "APT::Update::Error-Mode=any", "update")

    def chosen(self, packages: list[Any]) -> list[list[str]]:
        """For each set its packages as `name=version`, as apt_package_set chooses them."""
        sets = [parse_wanted(each) for each in packages]
        names = sorted({package.name for wanted in sets for package in wanted})
        candidates = parse_policy(self.run("apt-cache", "policy", *names))
        offered = parse_madison(self.run("apt-cache", "madison", *names))
        words, lacking = [], []
        for wanted in sets:
            versions = [chosen_version(package, candidates, offered) for package in wanted]
            words.append([f"{package.name}={version}" for package, version in zip(wanted, versions)])
            lacking += [package for package, version in zip(wanted, versions) if version is None]
        if lacking:
            told = "; ".join(
                f"{package.name} {package.version}".rstrip()
                + f" (offered: {', '.join(offered.get(package.name, [])[:8]) or 'none'})"
                for package in lacking
            )
            kernel = (
                " Headers of a kernel leave the archive with it: name kernels that it has in serving_bundle_kernels."
                if any(package.name.startswith("linux-") for package in lacking)
                else ""
            )
            self.module.fail_json(msg=f"No package source offers {told}.{kernel}")
        return words

    def archives_of(self, words: list[str]) -> list[dict[str, Any]]:
        """All archives that a transaction needs on an empty system."""
        return apt_bundle.parse_uris(self.run("apt-get", "--yes", "--quiet", "--print-uris", "install", *words))

    def download(self, archives: list[dict[str, Any]]) -> None:
        """apt verifies each; one that is there whole is not downloaded again."""
        words = [f"{archive['package']}={archive['version']}" for archive in archives]
        os.chdir(self.archives)
        self.run("apt-get", "--quiet", "download", *words)

    def targets(self) -> list[dict[str, str]]:
        return apt_bundle.parse_targets(self.run("apt-get", "indextargets", "--format", apt_bundle.FORMAT))

    def index(self, target: dict[str, str]) -> tuple[str, str] | None:
        """(path here, path in the repository) of an index as the publisher has it; the release file vouches for it."""
        release, _ = apt_bundle.release_files(target)[0]
        with open(release, encoding="utf-8", errors="replace") as stream:
            found = apt_bundle.listed_index(stream.read(), target["metakey"])
        if found is None:
            return None
        name, sha256 = found
        path = os.path.join(self.root, "indices", sha256)
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            address = target["base_uri"] + name
            command = [
                "/usr/lib/apt/apt-helper",
                *self.options,
                "download-file",
                address,
                f"{path}.new",
                f"SHA256:{sha256}",
            ]
            code, out, err = self.module.run_command(command, environ_update=ENVIRONMENT)
            if code:
                self.module.fail_json(
                    msg=f"{address} cannot be had as the release file has it; run again if the repository was just "
                    f"changed:\n{complaints(out + err)}"
                )
            os.replace(f"{path}.new", path)
        return path, target["base_uri"][len(target["repo_uri"]) :] + name


def lay_out(module: AnsibleModule, apt: Apt, archives: dict[str, dict[str, Any]]) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the directory changed, and the sources of the distribution."""
    targets = apt.targets()
    names = apt_bundle.repository_names(targets, module.params["repositories"])
    files: dict[str, str] = {}
    used = {uri for uri, name in names.items() if not name.startswith("distribution/")}
    for archive in archives.values():
        base, path = apt_bundle.place_of(archive["uri"], names)
        used.add(base)
        files[f"{names[base]}/{path}"] = os.path.join(apt.archives, archive["name"])
    targets = [target for target in targets if target["repo_uri"] in used]
    for target in targets:
        for source, path in filter(None, [*apt_bundle.release_files(target), apt.index(target)]):
            files[f"{names[target['repo_uri']]}/{path}"] = source
    sources = apt_bundle.sources_of(
        [target for target in targets if names[target["repo_uri"]].startswith("distribution/")], names
    )
    for place, path in module.params["keys"].items():
        files[place] = os.path.join(apt.root, path.lstrip("/"))
    for source in sources:
        if key := apt_bundle.own_key(source["signed_by"]):
            files[key] = source["signed_by"]
            source["signed_by"] = key
    return replace_tree(module.params["directory"], files), sources


def replace_tree(directory: str, files: dict[str, str]) -> bool:
    """Make the directory hold exactly these files, as links to where they are, or copies on another disk."""
    changed = False
    for folder, _, found in os.walk(directory, topdown=False):
        for name in found:
            path = os.path.join(folder, name)
            if os.path.relpath(path, directory) not in files:
                os.unlink(path)
                changed = True
        if not os.listdir(folder):
            os.rmdir(folder)
    for path, source in files.items():
        place = os.path.join(directory, path)
        if os.path.exists(place) and filecmp.cmp(place, source, shallow=os.path.samefile(place, source)):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.exists(place):
            os.unlink(place)
        try:
            os.link(source, place)
        except OSError:
            shutil.copy(source, place)
        changed = True
    return changed


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "root": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "str", "default": []},
            "keys": {"type": "dict", "default": {}, "no_log": False},
            "sets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "packages": {"type": "list", "elements": "raw", "required": True},
                },
            },
            "repositories": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True, packages={}, sources=[], downloaded_bytes=0)
    apt = Apt(module, module.params["root"])
    apt.prepare(module.params["files"])
    apt.update()
    archives: dict[str, dict[str, Any]] = {}
    versions: dict[str, list[str]] = {}
    there = set(os.listdir(apt.archives))
    for words in apt.chosen([wanted["packages"] for wanted in module.params["sets"]]):
        for archive in apt.archives_of(words):
            archives[archive["name"]] = archive
    apt.download(list(archives.values()))
    for archive in archives.values():
        known = versions.setdefault(archive["package"], [])
        known += [] if archive["version"] in known else [archive["version"]]
    changed, sources = lay_out(module, apt, archives)
    fresh = set(os.listdir(apt.archives)) - there
    module.exit_json(
        changed=changed,
        packages=dict(sorted(versions.items())),
        sources=sources,
        downloaded_bytes=sum(archive["size"] for name, archive in archives.items() if name in fresh),
    )


if __name__ == "__main__":
    main()
