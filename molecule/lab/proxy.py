"""A stand-in for a company's HTTP proxy: passes requests on, knows its user, and remembers what it was asked for.

Runs inside a container of the lab: python3 proxy.py USER:PASSWORD. `GET /requests` answers with one line per request.
"""

import base64
import http.client
import shutil
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

PORT = 3128
ONE_HOP = {"proxy-authorization", "proxy-connection", "connection", "keep-alive", "transfer-encoding"}  # not passed on


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    credentials = ""
    requests: ClassVar[list[str]] = []

    def admitted(self) -> bool:
        if self.headers.get("Proxy-Authorization") == f"Basic {self.credentials}":
            self.requests.append(f"{self.command} {self.path}")
            return True
        self.answer(407, b"", {"Proxy-Authenticate": 'Basic realm="stand-in"'})
        return False

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/requests":
            self.answer(200, "".join(f"{line}\n" for line in self.requests).encode(), {"Content-Type": "text/plain"})
            return
        if not self.admitted():
            return
        address = urlsplit(self.path)
        connection = http.client.HTTPConnection(address.hostname, address.port or 80, timeout=60)
        path = address.path + (f"?{address.query}" if address.query else "")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ONE_HOP}
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
        except OSError as problem:
            self.answer(502, f"{problem}\n".encode(), {})
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ONE_HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        shutil.copyfileobj(answer, self.wfile)
        self.close_connection = True

    def do_CONNECT(self) -> None:
        if not self.admitted():
            return
        host, _, port = self.path.rpartition(":")
        try:
            upstream = socket.create_connection((host, int(port)), timeout=10)
        except OSError as problem:
            self.answer(502, f"{problem}\n".encode(), {})
            return
        self.send_response(200)
        self.end_headers()
        back = threading.Thread(target=relay, args=(upstream, self.connection), daemon=True)
        back.start()
        relay(self.connection, upstream)
        back.join()
        self.close_connection = True


def relay(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until the source ends."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


if __name__ == "__main__":
    Handler.credentials = base64.b64encode(sys.argv[1].encode()).decode()
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
