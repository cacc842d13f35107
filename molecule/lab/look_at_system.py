"""Print what a host is like, as JSON: packages, holds, files by content and mode, units, Docker, kernel modules.

Runs on the host. Left out is what changes by itself: caches, logs, lists of packages, what a boot writes.
"""

import hashlib
import json
import os
import subprocess

ROOTS = ["/etc", "/opt", "/usr/local", "/var/lib"]
BY_ITSELF = (
    "/etc/lab",
    "/etc/machine-id",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/ld.so.cache",
    "/etc/.pwd.lock",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/systemd",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/lab",
    "/var/lib/initramfs-tools",
    "/var/lib/dbus",
    "/var/lib/private",
)


def files():
    found = {}
    for root in ROOTS:
        for directory, below, names in os.walk(root):
            below[:] = [name for name in below if os.path.join(directory, name) not in BY_ITSELF]
            for name in names:
                path = os.path.join(directory, name)
                if path in BY_ITSELF:
                    continue
                if os.path.islink(path):
                    found[path] = os.readlink(path)
                elif os.path.isfile(path):
                    with open(path, "rb") as stream:
                        found[path] = (
                            f"{hashlib.sha256(stream.read()).hexdigest()[:12]} {os.stat(path).st_mode & 0o7777:o}"
                        )
    return found


def lines(*command):
    try:
        return sorted(subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines())
    except FileNotFoundError:
        return []


print(
    json.dumps(
        {
            "packages": lines("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package} ${Version}\n"),
            "holds": lines("apt-mark", "showhold"),
            "files": files(),
            "units": lines("systemctl", "list-unit-files", "--state=enabled", "--no-legend", "--plain"),
            "modules": [line for line in lines("lsmod") if line.startswith(("nouveau", "nvidia"))],
            "containers": lines("docker", "ps", "--all", "--format", "{{.ID}} {{.Names}} {{.State}}"),
            "volumes": lines("docker", "volume", "ls", "--quiet"),
            "images": lines("docker", "images", "--format", "{{.Repository}}:{{.Tag}}"),
        }
    )
)
