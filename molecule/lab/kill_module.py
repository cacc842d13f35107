"""Kill the Ansible module that runs on this host: kill_module.py AFTER SECONDS.

Runs on the host, over SSH. AFTER is what the deployment has to have come to first: `now`, or `stop`, the note in the
deploy.log of a release that begins after this program. SECONDS later it says `ready`, waits for a line on its standard
input, and kills. Prints one JSON object: the killed processes, and the last line of deploy.log.
"""

import glob
import json
import os
import signal
import sys
import time

RELEASES = "/opt/blackwell-serving/stack/releases"


def notes(begin: float) -> list[str]:
    """The lines of the deploy.log that is written to since then."""
    for path in glob.glob(f"{RELEASES}/*/deploy.log"):
        if os.stat(path).st_mtime >= begin:
            with open(path) as log:
                return log.read().splitlines()
    return []


def parents(pid: int) -> list[tuple[int, str]]:
    """(pid, name) of a process and all above it."""
    found = []
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                name, _, rest = stat.read().partition("(")[2].rpartition(")")
        except OSError:
            return []
        found.append((pid, name))
        pid = int(rest.split()[1])
    return found


def modules() -> list[int]:
    """Processes of Python below an SSH session that is not this program's."""
    own = {pid for pid, _ in parents(os.getpid())}
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            chain = parents(int(entry))
            names = [name for _, name in chain]
            ours = {pid for pid, name in chain if not name.startswith(("sshd", "systemd"))} & own
            python = bool(names) and names[0].startswith("python")
            if python and not ours and any(name.startswith("sshd") for name in names[1:]):
                found.append(chain[0][0])
    return found


def main(after: str, seconds: float) -> None:
    begin = time.time()
    print("begun", flush=True)
    while after == "stop" and not any(" stop " in line for line in notes(begin)):
        time.sleep(0.02)
    time.sleep(seconds)
    print("ready", flush=True)
    sys.stdin.readline()
    killed = []
    for pid in modules():
        try:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        except ProcessLookupError:
            pass
    print(json.dumps({"killed": killed, "deploy_log": notes(begin)[-1:]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
