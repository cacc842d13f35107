"""Print the simulated GPU memory that living processes of this test host hold, as JSON: [{part: bytes}].

Runs on the host. A process keeps its file locked for as long as it lives (simulator/engine_simulator/ledger.py).
"""

import fcntl
import glob
import json

holders = []
for path in sorted(glob.glob("/run/lab/gpu/*.process")):
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lines = [line.split() for line in file.read().splitlines()[1:]]
            holders.append({part: int(size) for _, part, size in lines})
print(json.dumps(holders))
