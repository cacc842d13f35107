"""What has to be done so that a set of Debian packages is installed, held, and rid of what is in its way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

DPKG_QUERY_FORMAT = (
    "${Package}\\t${Architecture}\\t${db:Status-Want}\\t${db:Status-Eflag}\\t${db:Status-Status}\\t${Version}\\n"
)
UNFINISHED = frozenset({"unpacked", "half-configured", "half-installed", "triggers-awaited", "triggers-pending"})


@dataclass(frozen=True)
class Package:
    """One line of dpkg's status. `wanted` is dpkg's selection (install, hold, deinstall, purge)."""

    name: str
    version: str
    wanted: str
    status: str
    must_reinstall: bool = False

    @property
    def installed(self) -> bool:
        return self.status == "installed"

    @property
    def unfinished(self) -> bool:
        return self.status in UNFINISHED or self.must_reinstall


@dataclass(frozen=True)
class Wanted:
    """A package that must be installed; `version` is exact or a shell pattern, empty for any."""

    name: str
    version: str = ""

    def satisfied_by(self, package: Package | None) -> bool:
        return package is not None and package.installed and self.accepts(package.version)

    def accepts(self, version: str) -> bool:
        return not self.version or fnmatchcase(version, self.version)


@dataclass(frozen=True)
class Steps:
    """What has to be done, in this order; names are sorted, patterns resolved."""

    heal: list[str] = field(default_factory=list)
    install: list[Wanted] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    purge: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)


def parse_wanted(items: Iterable[str | dict[str, str]]) -> list[Wanted]:
    """Names, `name=version` or dictionaries with `name` and `version`; raises ValueError for anything else."""
    wanted = []
    for item in items:
        if isinstance(item, dict):
            unknown = set(item) - {"name", "version"}
            name, version = item.get("name"), item.get("version") or ""
            if unknown or not name:
                raise ValueError(f"a package is a name, or a dictionary with name and version, not {item}")
        else:
            name, _, version = str(item).partition("=")
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", str(name)):
            raise ValueError(f"'{name}' is no package name")
        wanted.append(Wanted(str(name), str(version)))
    return wanted


def parse_dpkg_status(text: str, architecture: str) -> dict[str, Package]:
    """dpkg-query's output in DPKG_QUERY_FORMAT; packages of foreign architectures are left out."""
    packages = {}
    for line in text.splitlines():
        name, arch, want, flag, status, version = line.split("\t")
        if arch in (architecture, "all") or (not arch and status != "not-installed"):
            packages[name] = Package(name, version, want, status, must_reinstall=flag == "reinstreq")
    return packages


def needed_steps(
    wanted: list[Wanted],
    absent: Collection[str],
    packages: dict[str, Package],
    hold: bool = False,
    hold_also: Iterable[str] = (),
) -> Steps:
    """Compare what is wanted with dpkg's status.

    `absent` and `hold_also` are shell patterns over the names of the packages that are there. A package that is wanted
    is never removed. What is removed is purged as well, and so is what was removed before and left its configuration.
    Compare again after an installation: it may bring packages that `hold_also` means.
    """
    names = {package.name for package in wanted}
    there = {name for name, package in packages.items() if package.status not in ("not-installed", "config-files")}
    remove = {name for name in there if name not in names and any(fnmatchcase(name, pattern) for pattern in absent)}
    left = {name for name, package in packages.items() if package.status == "config-files"}
    purge = {name for name in left if name not in names and any(fnmatchcase(name, pattern) for pattern in absent)}
    to_hold = set(names) if hold else set()
    to_hold |= {name for name in there - remove if any(fnmatchcase(name, pattern) for pattern in hold_also)}
    held = {name for name in to_hold if name in packages and packages[name].wanted == "hold"}
    return Steps(
        heal=sorted(name for name, package in packages.items() if package.unfinished),
        install=[package for package in wanted if not package.satisfied_by(packages.get(package.name))],
        remove=sorted(remove),
        purge=sorted(remove | purge),
        hold=sorted(to_hold - held),
    )


def parse_policy(text: str) -> dict[str, str]:
    """Candidate version of each package in the output of `apt-cache policy`; without one it is left out."""
    candidates, name = {}, ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            name = line.rstrip(":")
        elif (match := re.match(r"  Candidate: (\S+)", line)) and match[1] != "(none)":
            candidates[name] = match[1]
    return candidates


def parse_madison(text: str) -> dict[str, list[str]]:
    """Offered versions of each package in the output of `apt-cache madison`, in its order: newest first."""
    offered: dict[str, list[str]] = {}
    for line in text.splitlines():
        columns = [column.strip() for column in line.split("|")]
        if len(columns) >= 3 and not columns[2].endswith("Sources"):
            versions = offered.setdefault(columns[0], [])
            if columns[1] not in versions:
                versions.append(columns[1])
    return offered


def chosen_version(package: Wanted, candidates: dict[str, str], offered: dict[str, list[str]]) -> str | None:
    """The version to install: apt's candidate if it will do, else the newest offered one that does."""
    candidate = candidates.get(package.name)
    if candidate is not None and package.accepts(candidate):
        return candidate
    return next((version for version in offered.get(package.name, []) if package.accepts(version)), None)


def parse_simulation(text: str) -> tuple[dict[str, str], list[str]]:
    """What `apt-get --simulate` would do: versions of what it installs or upgrades, and names that it removes."""
    installs = {
        match[1]: match[2]
        for match in re.finditer(r"^Inst (\S+?)(?::\S+)? (?:\[[^\]]*\] )?\((\S+)", text, re.MULTILINE)
    }
    removes = re.findall(r"^(?:Remv|Purg) ([^\s:]+)", text, re.MULTILINE)
    return installs, sorted(set(removes))


def is_local_source(path: str, text: str) -> bool:
    """Whether a file of sources.list.d names package sources on this host's own disks, and no others."""
    if path.endswith(".sources"):
        text = re.sub(r"^#.*\n", "", text + "\n", flags=re.MULTILINE)  # a field goes on after a comment
        found = re.findall(r"^URIs:(.*\n(?:[ \t].*\n)*)", text, re.MULTILINE | re.IGNORECASE)
        addresses = " ".join(found).split()
    elif path.endswith(".list"):
        addresses = re.findall(r"^\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s+)?(\S+)", text, re.MULTILINE)
    else:
        return False
    return bool(addresses) and all(address.startswith(("file:", "copy:")) for address in addresses)


def upstream_version(version: str) -> str:
    """A Debian version without epoch and revision."""
    return re.sub(r"^\d+:", "", version).rpartition("-")[0] or version


def parse_dkms_status(text: str, version: str) -> dict[str, str]:
    """State (added, built, installed) of each module of that version in the output of `dkms status`."""
    lines = re.findall(rf"^([^\s,/]+)(?:/|, ){re.escape(version)}(?:, [^:]*)?: (\w+)", text, re.MULTILINE)
    return dict(lines)


def dkms_complaints(text: str) -> str:
    """What dkms says went wrong, and where it says that more can be read."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = [line for line in lines if re.match(r"Error! |Consult ", line) and "autoinstall" not in line]
    return "\n".join(dict.fromkeys(chosen or lines[-5:]))


def last_words(make_log: str) -> str:
    """The last lines of a make.log that the compiler or make wrote."""
    lines = [line.strip() for line in make_log.splitlines()]
    return "\n".join([line for line in lines if line and not re.match(r"#|-+$", line)][-5:])


COMPLAINT = re.compile(r"(E|Err|W|dpkg): |Err:\d|.*(No space left|rror processing)")
PROGRESS = re.compile(
    r"(Setting up|Unpacking|Preparing|Selecting|Processing|Errors were|Reading|Building|\(|Get:|Hit:)"
)


def complaints(text: str) -> str:
    """The lines of apt's or dpkg's output that say what went wrong.

    With dpkg's error about a package come its reason, the next line, and the last words of the package's own script.
    """
    lines = [line.strip() for line in text.splitlines()]
    depends = [line for line in lines if re.match(r"\S+ : (Pre-)?(Depends|Conflicts|Breaks):", line)]
    chosen = []
    for number, line in enumerate(lines):
        if line.startswith("dpkg: error processing"):
            before = lines[max(0, number - 3) : number]
            chosen += [word for word in before if word and not PROGRESS.match(word)]
            chosen += lines[number : number + 2]
        elif COMPLAINT.match(line):
            chosen.append(line)
    if any(re.match(r"[EW]: ", line) for line in chosen):  # these say the same as Err, with the reason
        chosen = [line for line in chosen if not re.match(r"Err:\d", line)]
    found = list(dict.fromkeys([*depends, *chosen]))
    failed = [line for line in found if re.match(r"[EW]: Failed to fetch", line)]
    if len(failed) > 3:
        found = [line for line in found if line not in failed[2:]] + [f"(and {len(failed) - 2} more of those)"]
    return "\n".join(found[:20]) or "\n".join(lines[-5:])
