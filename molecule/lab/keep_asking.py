#!/usr/bin/env python3
"""Ask a service again and again, and say how that went: keep_asking.py URL MODEL STOP_FILE COUNTS_FILE.

Four requests at a time, each on a connection of its own, until STOP_FILE is there; then the ones in flight are awaited.
Writes {"ok": n, "failed": {reason: n}, "longest_s": s} as JSON. An answer counts that has tokens; nothing is tried again.
"""

import collections
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

AT_ONCE, PATIENCE_S = 4, 120


def ask(url: str, model: str) -> str:
    """Empty, or why the request failed."""
    body = json.dumps({"model": model, "prompt": "Say one word after another", "max_tokens": 24}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return "" if json.loads(answer.read())["usage"]["completion_tokens"] else "no token"
    except urllib.error.HTTPError as problem:
        return f"status {problem.code}: {problem.read(200).decode(errors='replace')}"
    except (OSError, ValueError, KeyError) as problem:
        return str(problem)


def main(url: str, model: str, stop: Path, counts: Path) -> None:
    ok, longest, failed = 0, 0.0, collections.Counter()
    lock = threading.Lock()

    def keep_asking() -> None:
        nonlocal ok, longest
        while not stop.exists():
            begin = time.monotonic()
            reason = ask(url, model)
            with lock:
                longest = max(longest, time.monotonic() - begin)
                ok += not reason
                failed.update([reason] if reason else [])
            time.sleep(0.1)

    threads = [threading.Thread(target=keep_asking) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts.write_text(json.dumps({"ok": ok, "failed": failed, "longest_s": round(longest, 1)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
