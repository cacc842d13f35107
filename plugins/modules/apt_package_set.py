#!/usr/bin/python
"""Install, hold and clear the way for a set of packages, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_package_set
short_description: Install a set of packages, hold it, and remove what is in its way, in one call
version_added: 0.2.0
description:
  - Heals an interrupted dpkg, refreshes the package lists where something has to be installed, installs and removes in
    one transaction of apt, checks with dpkg that all of it is there, and holds it.
  - Kernel modules that DKMS makes from one of the packages, and that the running kernel lacks though dpkg is content
    (after a full disk, or in a kernel whose headers came late), are built.
  - Check mode tells from dpkg's status what would change. It needs neither python3-apt nor the repository, which on a
    fresh host is not there yet.
  - A transaction that would remove a package that is not listed, or change one of those that somebody else holds, is
    refused before it begins. A hold on a package that O(may_remove) names does not keep apt from changing it.
  - Services are not restarted by needrestart; existing configuration files are kept.
options:
  packages:
    description:
      - What must be installed. An item is a name, V(name=version), or a dictionary with C(name) and C(version).
      - A version is exact or a shell pattern such as V(580.*). Without one, any installed version will do.
    type: list
    elements: raw
    required: true
  absent:
    description:
      - Names or shell patterns of packages to purge, configuration files included. A package of O(packages) is never
        removed.
    type: list
    elements: str
    default: []
  may_remove:
    description:
      - Names or shell patterns of packages that apt may remove, or change though they are held, where the transaction
        needs it. What it removes is not purged; configuration files that somebody may have edited stay.
    type: list
    elements: str
    default: []
  must_not_install:
    description: Names or shell patterns of packages that must not come along; then nothing is done.
    type: list
    elements: str
    default: []
  hold:
    description: Whether the packages of O(packages) are put on hold.
    type: bool
    default: false
  hold_also:
    description: Names or shell patterns of further installed packages to put on hold.
    type: list
    elements: str
    default: []
  dkms_modules:
    description:
      - Kernel modules that DKMS makes from these packages. One that the running kernel lacks, or has in another version
        than the installed package, is built with C(dkms autoinstall), or put there again with C(dkms install --force)
        where dkms takes it for installed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the kernel module.
        type: str
        required: true
      package:
        description: The package that brings its source. The module has the package's version, without revision.
        type: str
        required: true
  sources_changed:
    description: Whether a package source was just changed, so that the lists must be refreshed in any case.
    type: bool
    default: false
  local_sources:
    description:
      - Whether apt uses only the package sources on this host's own disks (C(file:)), for this call. Others in
        C(/etc/apt) stay, and are not asked.
    type: bool
    default: false
  install_recommends:
    description: Whether apt also installs what the packages recommend.
    type: bool
    default: false
  record:
    description: Where the host remembers which packages were installed, held and removed here.
    type: path
    default: /var/lib/blackwell-serving/put_there.json
  lock_timeout:
    description: Seconds to wait for another package manager to finish.
    type: int
    default: 300
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Install the driver of one branch as one set
  blackwell.serving.apt_package_set:
    packages:
      - {name: nvidia-driver-cuda, version: 580.*}
      - {name: nvidia-kernel-open-dkms, version: 580.*}
    absent: [nvidia-kernel-dkms]
    hold: true
"""

RETURN = r"""
installed:
  description: Packages that were, or in check mode would be, newly installed, with their version where it is known.
  returned: success
  type: list
  elements: str
upgraded:
  description: Packages that were, or would be, brought to another version.
  returned: success
  type: list
  elements: str
removed:
  description: Packages that were, or would be, removed.
  returned: success
  type: list
  elements: str
purged:
  description: Packages whose configuration files were, or would be, deleted.
  returned: success
  type: list
  elements: str
held:
  description: Packages that were, or would be, newly put on hold.
  returned: success
  type: list
  elements: str
healed:
  description: Packages that an interrupted dpkg had left unfinished and that were, or would be, finished.
  returned: success
  type: list
  elements: str
built:
  description: Kernel modules that dkms built, or in check mode would build, though their packages were installed.
  returned: success
  type: list
  elements: str
  sample: [nvidia 595.91.07]
versions:
  description: Installed version of each package of O(packages).
  returned: success
  type: dict
"""

import glob
import os
import re
import shutil
import tempfile
from fnmatch import fnmatchcase

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.package_set import (
    DPKG_QUERY_FORMAT,
    Package,
    Steps,
    Wanted,
    chosen_version,
    complaints,
    dkms_complaints,
    is_local_source,
    last_words,
    needed_steps,
    parse_dkms_status,
    parse_dpkg_status,
    parse_madison,
    parse_policy,
    parse_simulation,
    parse_wanted,
    upstream_version,
)
from ansible_collections.blackwell.serving.plugins.module_utils.put_there import Record

VERBS = {"install", "hold", "policy", "madison", "--simulate", "--show"}
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}


class PackageSet:
    """The steps of one run on this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.changed = False
        self.built: list[str] = []
        self.update_complaints = ""
        parameters = module.params
        self.wanted: list[Wanted] = parse_wanted(parameters["packages"])
        self.apt_get = [
            "apt-get",
            "--yes",
            "--quiet",
            "--allow-downgrades",
            "--allow-change-held-packages",
            "-o",
            f"DPkg::Lock::Timeout={parameters['lock_timeout']}",
            "-o",
            "Dpkg::Options::=--force-confdef",
            "-o",
            "Dpkg::Options::=--force-confold",
            "-o",
            f"APT::Install-Recommends={str(parameters['install_recommends']).lower()}",
            *self.source_options(),
        ]
        self.architecture = self.run(["dpkg", "--print-architecture"]).strip()

    def source_options(self) -> list[str]:
        """Options with which apt sees no other package source than those that it may use."""
        if not self.module.params["local_sources"]:
            return []
        folder = tempfile.mkdtemp(prefix="sources-", dir=self.module.tmpdir)
        for path in sorted(glob.glob("/etc/apt/sources.list.d/*")):
            if is_local_source(path, text_of(path)):
                shutil.copy(path, folder)
        options = ("Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={folder}", "APT::Get::List-Cleanup=false")
        return [word for option in options for word in ("-o", option)]

    def run(self, command: list[str], may_fail: bool = False) -> str:
        code, out, err = self.module.run_command(command, environ_update=ENVIRONMENT)
        if code and not may_fail:
            self.fail(" ".join(command[:1] + [word for word in command if word in VERBS]), out + err)
        return out + err if may_fail else out

    def fail(self, what: str, output: str) -> None:
        reasons = complaints(output)
        if self.update_complaints and self.update_complaints not in reasons:
            reasons += f"\nRefreshing the package lists had failed before:\n{self.update_complaints}"
        self.module.fail_json(msg=f"{what} failed:\n{reasons}", changed=self.changed)

    def status(self) -> dict[str, Package]:
        text = self.run(["dpkg-query", "--show", f"--showformat={DPKG_QUERY_FORMAT}"])
        return parse_dpkg_status(text, self.architecture)

    def steps(self, packages: dict[str, Package]) -> Steps:
        parameters = self.module.params
        return needed_steps(self.wanted, parameters["absent"], packages, parameters["hold"], parameters["hold_also"])

    def heal(self, unfinished: list[str]) -> None:
        self.module.warn(
            f"dpkg was interrupted on this host and had left unfinished: {', '.join(unfinished)}. Finishing that first."
        )
        self.changed = True
        self.run(["dpkg", "--configure", "--pending", "--force-confdef", "--force-confold"], may_fail=True)
        broken = [name for name, package in self.status().items() if package.unfinished]
        if not broken:
            return
        output = self.run([*self.apt_get, "--fix-broken", "install"], may_fail=True)
        broken = [name for name, package in self.status().items() if package.unfinished]
        if broken:
            output += self.run([*self.apt_get, "install", "--reinstall", *broken], may_fail=True)
        broken = [name for name, package in self.status().items() if package.unfinished]
        if broken:
            self.fail(f"Finishing {', '.join(broken)}, which an interrupted dpkg had left,", output)

    def modules_to_build(self, packages: dict[str, Package]) -> dict[str, str]:
        """Versions of the modules that DKMS should have made of installed packages, and that the kernel lacks."""
        found = {}
        for module in self.module.params["dkms_modules"]:
            package = packages.get(module["package"])
            if package is not None and package.installed:
                version = upstream_version(package.version)
                if self.version_on_disk(module["name"]) != version:
                    found[module["name"]] = version
        return found

    def version_on_disk(self, kernel_module: str) -> str:
        return self.module.run_command(["modinfo", "--field", "version", kernel_module])[1].strip()

    def build(self, name: str, version: str) -> None:
        """dkms's word is not taken for it: after a full disk it takes a module that is not there for installed."""
        kernel = ["-k", os.uname().release]
        output = self.run(["dkms", "autoinstall", *kernel], may_fail=True)
        if self.version_on_disk(name) != version:
            states = parse_dkms_status(self.run(["dkms", "status", *kernel], may_fail=True), version)
            for source, state in states.items():
                if state == "installed":
                    output += self.run(
                        ["dkms", "install", "--force", "-m", source, "-v", version, *kernel], may_fail=True
                    )
        if self.version_on_disk(name) != version:
            logs = sorted(glob.glob(f"/var/lib/dkms/*/{version}/build/make.log"))
            told = "".join(f"\nThe end of {path}:\n{last_words(text_of(path))}" for path in logs)
            self.module.fail_json(
                msg=f"The packages are installed, but there is no module {name} {version} for the running kernel "
                f"{kernel[1]}, and dkms cannot build it:\n{dkms_complaints(output)}{told}",
                changed=self.changed,
            )

    def refresh_lists(self) -> None:
        """A source that cannot be read is no failure as long as all packages are known without it."""
        code, out, err = self.module.run_command([*self.apt_get, "update"], environ_update=ENVIRONMENT)
        if code or re.search(r"^(Err:|E: |W: Failed)", out + err, re.MULTILINE):
            self.update_complaints = complaints(out + err)
            self.module.warn(f"apt-get update: {self.update_complaints}")

    def resolved(self, install: list[Wanted]) -> list[str]:
        """`name=version` for apt-get; fails where a package is not offered in a version that will do."""
        names = [package.name for package in install]
        apt_cache = ["apt-cache", *self.source_options()]
        candidates = parse_policy(self.run([*apt_cache, "policy", *names]))
        offered = parse_madison(self.run([*apt_cache, "madison", *names]))
        words, missing = [], []
        for package in install:
            version = chosen_version(package, candidates, offered)
            if version is None:
                versions = ", ".join(offered.get(package.name, [])[:8]) or "none"
                missing.append(f"{package.name} {package.version}".rstrip() + f" (offered: {versions})")
            words.append(f"{package.name}={version}")
        if missing:
            self.module.fail_json(
                msg="No package source offers "
                + "; ".join(missing)
                + (f"\napt-get update had failed:\n{self.update_complaints}" if self.update_complaints else ""),
                changed=self.changed,
            )
        return words

    def transact(self, steps: Steps) -> None:
        words = [*self.resolved(steps.install), *(f"{name}-" for name in steps.remove)]
        command = [*self.apt_get, "-o", "APT::Ignore-Hold=true", "install", *words]
        simulation = self.run([*command[:1], "--simulate", *command[1:]])
        installs, removes = parse_simulation(simulation)
        packages = self.status()
        there = {name for name, package in packages.items() if package.installed}
        unwanted = [
            name
            for name in installs
            if name not in there and any(fnmatchcase(name, it) for it in self.module.params["must_not_install"])
        ]
        if unwanted:
            self.module.fail_json(
                msg=f"apt would also install {', '.join(unwanted)}, which must not come along; nothing was done.",
                changed=self.changed,
            )
        allowed = [*steps.remove, *self.module.params["may_remove"], *self.module.params["absent"]]
        foreign = [name for name in removes if not any(fnmatchcase(name, pattern) for pattern in allowed)]
        if foreign:
            self.module.fail_json(
                msg=f"apt would also remove {', '.join(foreign)}; that was not asked for, so nothing was done.",
                changed=self.changed,
            )
        ours = [*allowed, *self.module.params["hold_also"], *(package.name for package in self.wanted)]
        kept = [
            name
            for name in installs
            if name in there
            and packages[name].wanted == "hold"
            and not any(fnmatchcase(name, pattern) for pattern in ours)
        ]
        if kept:
            self.module.fail_json(
                msg=f"apt would have to change {', '.join(kept)}, which somebody holds; nothing was done.",
                changed=self.changed,
            )
        self.changed = True
        self.run(command)

    def apply(self, steps: Steps) -> None:
        if steps.heal:
            self.heal(steps.heal)
            steps = self.steps(self.status())
        if steps.install or self.module.params["sources_changed"]:
            self.refresh_lists()
        if steps.install or steps.remove:
            self.transact(steps)
        if steps.purge:
            self.changed = True
            self.run(["dpkg", "--purge", *steps.purge])
        packages = self.status()
        missing = [
            f"{package.name} {package.version}".rstrip()
            for package in self.wanted
            if not package.satisfied_by(packages.get(package.name))
        ]
        if missing:
            self.module.fail_json(
                msg=f"apt ended without an error, but dpkg does not have: {', '.join(missing)}.", changed=self.changed
            )
        for name, version in self.modules_to_build(packages).items():
            self.changed = True
            self.build(name, version)
            self.built.append(f"{name} {version}")
        hold = self.steps(packages).hold
        if hold:
            self.changed = True
            self.run(["apt-mark", "hold", *hold])


def remember(path: str, before: dict[str, Package], after: dict[str, Package]) -> None:
    """Also where apt failed halfway."""
    record = Record(path)
    there = {name for name, package in before.items() if package.installed}
    now = {name for name, package in after.items() if package.installed}
    held = {name for name, package in after.items() if package.wanted == "hold"}
    record.package_changes(
        now - there,
        held - {name for name, package in before.items() if package.wanted == "hold"},
        there - now,
    )
    record.save()


def text_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()


def differences(steps: Steps, before: dict[str, Package], after: dict[str, Package]) -> dict[str, list[str]]:
    """What was done, by comparing dpkg's status before and after."""
    there = {name: package.version for name, package in before.items() if package.installed}
    now = {name: package.version for name, package in after.items() if package.installed}
    return {
        "installed": sorted(f"{name} {version}" for name, version in now.items() if name not in there),
        "upgraded": sorted(
            f"{name} {there[name]} -> {version}" for name, version in now.items() if there.get(name, version) != version
        ),
        "removed": sorted(f"{name} {version}" for name, version in there.items() if name not in now),
        "held": sorted(
            name
            for name, package in after.items()
            if package.wanted == "hold" and (name not in before or before[name].wanted != "hold")
        ),
        "purged": steps.purge,
        "healed": steps.heal,
    }


def prediction(steps: Steps, before: dict[str, Package], lacking: dict[str, str]) -> dict[str, list[str]]:
    """What would be done; `lacking`: versions of modules that DKMS should have made of what is installed."""
    there = {name for name, package in before.items() if package.installed}
    return {
        "installed": [f"{item.name} {item.version}".rstrip() for item in steps.install if item.name not in there],
        "upgraded": [
            f"{item.name} {before[item.name].version} -> {item.version}" for item in steps.install if item.name in there
        ],
        "removed": [f"{name} {before[name].version}" for name in steps.remove],
        "held": steps.hold,
        "purged": steps.purge,
        "healed": steps.heal,
        "built": [f"{name} {version}" for name, version in lacking.items()],
    }


def diff_of(done: dict[str, list[str]]) -> dict[str, str]:
    before = [*done["removed"], *(line.split(" -> ")[0] for line in done["upgraded"])]
    after = [*done["installed"], *(line.split(" ")[0] + " " + line.split(" -> ")[1] for line in done["upgraded"])]
    after += [f"{name} (held)" for name in done["held"]]
    before += [f"{name} (configuration files)" for name in done["purged"]]
    before += [f"{name} (unfinished)" for name in done["healed"]]
    after += [f"{name} (built by dkms)" for name in done["built"]]
    return {
        "before_header": "packages",
        "after_header": "packages",
        "before": "".join(f"{line}\n" for line in sorted(before)),
        "after": "".join(f"{line}\n" for line in sorted(after)),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "raw", "required": True},
            "absent": {"type": "list", "elements": "str", "default": []},
            "may_remove": {"type": "list", "elements": "str", "default": []},
            "must_not_install": {"type": "list", "elements": "str", "default": []},
            "hold": {"type": "bool", "default": False},
            "hold_also": {"type": "list", "elements": "str", "default": []},
            "dkms_modules": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "package": {"type": "str", "required": True},
                },
            },
            "sources_changed": {"type": "bool", "default": False},
            "local_sources": {"type": "bool", "default": False},
            "install_recommends": {"type": "bool", "default": False},
            "record": {"type": "path", "default": "/var/lib/blackwell-serving/put_there.json"},
            "lock_timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    try:
        package_set = PackageSet(module)
    except ValueError as error:
        module.fail_json(msg=f"packages: {error}.")
    before = package_set.status()
    steps = package_set.steps(before)
    if module.check_mode:
        kept = {name: package for name, package in before.items() if name not in {item.name for item in steps.install}}
        done = prediction(steps, before, package_set.modules_to_build(kept))
        changed = any(done.values())
        after = before
    else:
        try:
            package_set.apply(steps)
        finally:
            after = package_set.status()
            remember(module.params["record"], before, after)
        done = {**differences(steps, before, after), "built": package_set.built}
        changed = package_set.changed
    module.exit_json(
        changed=changed,
        **done,
        versions={item.name: after[item.name].version for item in package_set.wanted if item.name in after},
        diff=diff_of(done),
    )


if __name__ == "__main__":
    main()
