"""Send requests to services at once and say how they ended: load.py REQUESTS WORDS URL=MODEL...

Runs on the host. Prints {model: {"ok": n, "failed": [reasons]}} as JSON; exit status 1 where a request failed.
"""

import concurrent.futures
import json
import sys
import urllib.request


def ask(target: str, words: int) -> str:
    """Empty, or why the request failed."""
    url, _, model = target.partition("=")
    body = {"model": model, "prompt": "word " * words, "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return "" if json.loads(answer.read())["usage"]["completion_tokens"] else "no token"
    except (OSError, ValueError, KeyError) as problem:
        return str(problem)


def main(requests: int, words: int, targets: list) -> int:
    with concurrent.futures.ThreadPoolExecutor(requests * len(targets)) as pool:
        answers = {target: [pool.submit(ask, target, words) for _ in range(requests)] for target in targets}
    found = {}
    for target, futures in answers.items():
        reasons = [future.result() for future in futures]
        failed = [reason for reason in reasons if reason]
        found[target.partition("=")[2]] = {"ok": len(reasons) - len(failed), "failed": failed}
    print(json.dumps(found))
    return int(any(result["failed"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
