"""Compare what holds GPU memory on this host with its containers and releases: compare_releases.py [settled].

Runs on the host. Prints {problems, holders, containers, releases} as JSON. At any moment, a process that holds
simulated GPU memory is in a running container of the stack, a service has one such container at most, and what runs
belongs to a release that is there. `settled`: what runs is the current release, whole, and no other one is half done.
"""

import collections
import fcntl
import glob
import json
import os
import re
import subprocess
import sys

STACK, PROJECT, LEDGER = "/opt/blackwell-serving/stack", "serving", "/run/lab/gpu"


def holders():
    """By each living process of the ledger the container that it is in, and the bytes that it holds."""
    with open("/proc/locks") as locks:
        pids = {int(words[5].split(":")[2]): int(words[4]) for words in map(str.split, locks) if words[1] == "FLOCK"}
    found = []
    for path in sorted(glob.glob(f"{LEDGER}/*.process")):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                continue
            except BlockingIOError:
                size = sum(int(line.split()[2]) for line in file.read().splitlines()[1:])
        pid = pids.get(os.stat(path).st_ino, 0)
        try:
            with open(f"/proc/{pid}/cgroup") as cgroup:
                container = re.findall(r"docker[-/]([0-9a-f]{64})", cgroup.read())[-1:]
        except OSError:
            continue  # it ended a moment ago
        found.append({"pid": pid, "bytes": size, "container": (container or [""])[0]})
    return found


def containers():
    listed = ["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"]
    ids = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    inspected = json.loads(subprocess.run(["docker", "inspect", *ids], capture_output=True).stdout) if ids else []
    return [
        {
            "id": container["Id"],
            "service": container["Config"]["Labels"]["com.docker.compose.service"],
            "spec": container["Config"]["Labels"].get("blackwell.serving.spec", ""),
            "runs": container["State"]["Running"],
        }
        for container in inspected
    ]


def releases():
    """By name: status, and the digest that each service's container is labelled with."""
    found = {}
    for path in sorted(glob.glob(f"{STACK}/releases/*")):
        try:
            with open(f"{path}/release.json") as release, open(f"{path}/compose.override.yaml") as override:
                specs = re.findall(
                    r"^  (\S+):\n    labels:\n      blackwell.serving.spec: (\S+)$", override.read(), re.M
                )
                found[os.path.basename(path)] = {"status": json.load(release)["status"], "specs": dict(specs)}
        except OSError:
            found[os.path.basename(path)] = {"status": "", "specs": {}}
    return found


def problems(settled, held, there, known, current):
    running = [container for container in there if container["runs"]]
    by_id = {container["id"]: container for container in running}
    found = [f"process {one['pid']} holds memory outside of the stack" for one in held if one["container"] not in by_id]
    for what, names in (
        ("containers run", [container["service"] for container in running]),
        ("processes hold memory", [by_id[one["container"]]["service"] for one in held if one["container"] in by_id]),
    ):
        counts = collections.Counter(names)
        found += [f"{name}: {count} {what}" for name, count in counts.items() if count > 1]
        wanted = set(known.get(current, {"specs": {}})["specs"])
        if settled and set(names) != wanted:
            found.append(f"{what} of {sorted(names)}, the current release has {sorted(wanted)}")
    digests = {(name, spec) for release in known.values() for name, spec in release["specs"].items()}
    found += [
        f"{container['service']} runs, and no release has it so"
        for container in running
        if (container["service"], container["spec"]) not in digests
    ]
    if settled:
        of_current = known.get(current, {"specs": {}})["specs"]
        found += [
            f"{container['service']} is not that of the current release"
            for container in running
            if of_current.get(container["service"]) != container["spec"]
        ]
        found += [
            f"release {name} is {one['status'] or 'not whole'}"
            for name, one in known.items()
            if one["status"] not in ("serving", "failed")
        ]
    return found


if __name__ == "__main__":
    held, there, known = holders(), containers(), releases()
    current = os.path.basename(os.readlink(f"{STACK}/current")) if os.path.islink(f"{STACK}/current") else ""
    print(
        json.dumps(
            {
                "problems": problems("settled" in sys.argv[1:], held, there, known, current),
                "current": current,
                "holders": held,
                "containers": there,
                "releases": {name: release["status"] for name, release in known.items()},
            }
        )
    )
