#!/usr/bin/env python3
"""Run a command and kill it, with the module that it runs on a host: interrupt.py AFTER SECONDS SSH... -- COMMAND...

SSH is a command line that runs a program on the host as root (`ssh admin@host sudo`). See kill_module.py for AFTER and
SECONDS. Prints one JSON object: how the command had ended if it had, how long it lasted, what was killed on the host.
"""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from kill_module import parents

KILLER = Path(__file__).with_name("kill_module.py")


def kill_with_children(pid: int) -> None:
    """Ansible's workers have sessions of their own."""
    family = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    family = [each for each in family if pid in [above for above, _ in parents(each)]]
    for each in [pid, *family]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def main(after: str, seconds: str, ssh: list[str], command: list[str]) -> None:
    remote = [*ssh, "python3", "-c", shlex.quote(KILLER.read_text()), after, seconds]
    killer = subprocess.Popen(remote, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    killer.stdout.readline()  # begun
    begin = time.monotonic()
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, **quiet, start_new_session=True)
    while not select.select([killer.stdout], [], [], 0.05)[0] and run.poll() is None:
        pass
    ended = run.poll()
    if ended is None:
        kill_with_children(run.pid)
        run.wait()
    lasted = round(time.monotonic() - begin, 1)
    if ended is not None:  # too late: nothing is killed any more
        killer.kill()
        print(json.dumps({"ended_before": ended, "lasted_s": lasted, "killed": [], "deploy_log": []}))
        return
    killer.stdout.readline()  # ready
    answer, _ = killer.communicate(b"kill\n", timeout=30)
    print(json.dumps({"ended_before": None, "lasted_s": lasted, **json.loads(answer)}))


if __name__ == "__main__":
    words = sys.argv[3:]
    split = words.index("--")
    main(sys.argv[1], sys.argv[2], words[:split], words[split + 1 :])
