"""Ask a gateway all the time, as many users would, until told to stop: gateway_load.py URL CA MODEL KEY_FILE STOP_FILE

Half of the users read streams. Each request has a connection of its own, and a key that KEY_FILE holds at that moment.
Ends when STOP_FILE is there or KEY_FILE is gone, and prints
{"ok": {"plain": n, "stream": n}, "failed": [reasons], "longest": seconds}.
A stream counts only with all its tokens and its end.
"""

import json
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

USERS = 8
TOKENS = 300
PAUSE = 0.2  # seconds after a request that failed


class Load:
    def __init__(self, url: str, ca: str, model: str, key_file: str, stop_file: str):
        self.url, self.model, self.key_file, self.stop_file = url, model, Path(key_file), Path(stop_file)
        self.context = ssl.create_default_context(cafile=ca)
        self.lock = threading.Lock()
        self.ok = {"plain": 0, "stream": 0}
        self.failed: list = []
        self.longest = 0.0

    def ask(self, user: int, number: int, stream: bool) -> None:
        """Raises where the answer is not whole."""
        # Users begin differently, so that a gateway which looks at beginnings gives them to different hosts.
        body = {"model": self.model, "stream": stream, "max_tokens": TOKENS, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": f"{user} asks: {number}"}]
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key_file.read_text().strip()}"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120, context=self.context) as answer:
            text = answer.read().decode()
        if not stream:
            used = json.loads(text)["usage"]["completion_tokens"]
            if used != TOKENS:
                raise ValueError(f"{used} tokens")
            return
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        if events[-1] != "[DONE]" or any("error" in json.loads(event) for event in events[:-1]):
            raise ValueError(f"the stream ended with {events[-2:]}")
        words = [event for event in events[:-1] if json.loads(event)["choices"][0]["delta"].get("content")]
        if len(words) != TOKENS:
            raise ValueError(f"{len(words)} tokens in the stream")

    def use(self, user: int) -> None:
        stream, number = user % 2 == 0, 0
        while self.key_file.exists() and not self.stop_file.exists():
            number += 1
            begin, reason = time.monotonic(), ""
            try:
                self.ask(user, number, stream)
            except urllib.error.HTTPError as problem:
                reason = f"{problem.code} {problem.read().decode(errors='replace')[:200]}"
            except (OSError, ValueError, LookupError) as problem:
                reason = f"{type(problem).__name__} {problem}"
            with self.lock:
                self.longest = max(self.longest, time.monotonic() - begin)
                if reason:
                    self.failed.append(f"{'stream' if stream else 'plain'}: {reason}")
                else:
                    self.ok["stream" if stream else "plain"] += 1
            if reason:
                time.sleep(PAUSE)

    def run(self) -> dict:
        users = [threading.Thread(target=self.use, args=(user,)) for user in range(USERS)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        return {"ok": self.ok, "failed": self.failed, "longest": round(self.longest, 2)}


if __name__ == "__main__":
    print(json.dumps(Load(*sys.argv[1:6]).run()))
