"""Bad input, as a network has it: abuse.py HOST PORT CA MODEL KEY

Prints what came back and how long it took as JSON; the caller judges.
"""

import collections
import concurrent.futures
import json
import socket
import ssl
import sys
import time

CONNECTIONS = 1000


class Target:
    def __init__(self, host: str, port: str, ca: str, model: str, key: str):
        self.address, self.model, self.key = (host, int(port)), model, key
        self.context = ssl.create_default_context(cafile=ca)

    def connect(self, timeout: float = 60) -> ssl.SSLSocket:
        plain = socket.create_connection(self.address, timeout)
        return self.context.wrap_socket(plain, server_hostname=self.address[0])

    def head(self, length: int, key: str = "", path: str = "/v1/completions") -> bytes:
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: gateway",
            f"Content-Length: {length}",
            "Content-Type: application/json",
        ]
        lines += [f"Authorization: Bearer {key or self.key}", "Connection: close"]
        return "\r\n".join([*lines, "", ""]).encode()

    def status(self, request: bytes) -> int:
        """0 where the connection ended without an answer."""
        try:
            with self.connect() as connection:
                connection.sendall(request)
                return status_of(connection)
        except OSError:
            return 0


def status_of(connection: ssl.SSLSocket) -> int:
    try:
        words = connection.recv(4096).split(b" ", 2)
        return int(words[1]) if len(words) > 1 else 0
    except OSError:
        return 0


def timed(ask) -> dict:
    begin = time.monotonic()
    return {"status": ask(), "seconds": round(time.monotonic() - begin, 1)}


def main(target: Target) -> dict:
    body = json.dumps({"model": target.model, "prompt": "hi", "max_tokens": 1}).encode()
    good = target.head(len(body)) + body

    def huge() -> int:
        return target.status(target.head(200 * 2**20) + b"{" * 65536)

    def slow() -> int:
        """A body that never ends."""
        with target.connect() as connection:
            connection.sendall(target.head(1000) + b"{")
            return status_of(connection)

    def silent() -> int:
        """A client that says nothing after it connected."""
        with target.connect() as connection:
            return status_of(connection)

    def long_header() -> int:
        return target.status(b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\nX: " + b"x" * 100000 + b"\r\n\r\n")

    results = {
        "huge": timed(huge),
        "huge_without_key": timed(lambda: target.status(target.head(200 * 2**20, "x" * 30) + b"{" * 65536)),
        "bad_json": timed(lambda: target.status(target.head(9) + b'{"model":')),
        "no_json": timed(lambda: target.status(target.head(3) + b"\x00\xff\x00")),
        "long_header": timed(long_header),
        "no_http": timed(lambda: target.status(b"\x16\x03\x01 nonsense\r\n\r\n")),
        "inner_path": timed(lambda: target.status(target.head(2, path="/workers") + b"{}")),
        "dots": timed(lambda: target.status(target.head(2, path="/v1/models/../../workers") + b"{}")),
        "slow": timed(slow),
        "silent": timed(silent),
    }
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        statuses = list(pool.map(target.status, [good] * CONNECTIONS))
    results["parallel"] = {
        "statuses": dict(collections.Counter(map(str, statuses))),
        "seconds": round(time.monotonic() - begin, 1),
    }
    results["afterwards"] = timed(lambda: target.status(good))
    return results


if __name__ == "__main__":
    print(json.dumps(main(Target(*sys.argv[1:6])), indent=1))
