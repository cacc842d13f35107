"""A stand-in for a large public registry: HTTPS, an account, tokens, and layers at another address than the registry's.

Runs on a test host: python3 hub.py NAME REGISTRY USER:PASSWORD. It has what the registry has, an address without users.
Certificate and key of NAME are hub.pem beside this file. As long as there is a file `hold` there, layers wait.
`GET /sent` of the layers' port tells, for each layer, how often it was asked for and how many bytes were sent.
"""

import base64
import http.client
import json
import ssl
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).resolve().parent
NAME, REGISTRY, ACCOUNT = sys.argv[1:4]
PORT, LAYERS_PORT = 443, 8443
PASSED_ON = ("Content-Type", "Content-Length", "Docker-Content-Digest", "Etag")
SENT: dict[str, dict[str, int]] = defaultdict(lambda: {"requests": 0, "bytes": 0})
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    def pass_on(self, path: str, sent=lambda size: None) -> None:
        """Answer as the registry does; `sent` hears of every piece of the body."""
        connection = http.client.HTTPConnection(REGISTRY, timeout=60)
        connection.request(self.command, path, headers={"Accept": ", ".join(self.headers.get_all("Accept", ["*/*"]))})
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name in PASSED_ON:
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        while piece := answer.read(65536):
            self.wfile.write(piece)
            sent(len(piece))
        connection.close()

    def do_HEAD(self) -> None:
        self.do_GET()


class Registry(Handler):
    """Port 443: asks for a token of the repository, and sends to the other port for layers."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/token":
            expected = "Basic " + base64.b64encode(ACCOUNT.encode()).decode()
            if self.headers.get("Authorization") != expected:
                self.answer(401)
                return
            scope = parse_qs(address.query).get("scope", [""])[0]
            self.answer(200, {"token": scope.replace(":", "_").replace("/", "."), "expires_in": 300})
            return
        repository = address.path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
        scope = f"repository:{repository}:pull"
        if self.headers.get("Authorization") != f"Bearer {scope.replace(':', '_').replace('/', '.')}":
            challenge = f'Bearer realm="https://{NAME}/token",service="{NAME}"'
            self.answer(401, WWW_Authenticate=challenge + (f',scope="{scope}"' if repository else ""))
        elif "/blobs/" in address.path:
            self.answer(307, Location=f"https://{NAME}:{LAYERS_PORT}{address.path}?signature=stand-in")
        else:
            self.pass_on(address.path)


class Layers(Handler):
    """Port 8443: sends layers to whoever has an address with a signature, and refuses a token, as object stores do."""

    def do_GET(self) -> None:
        if self.path == "/sent":
            self.answer(200, SENT)
            return
        address = urlsplit(self.path)
        if "Authorization" in self.headers or address.query != "signature=stand-in":
            self.answer(400)
            return
        layer = address.path.rpartition("/")[2]

        def sent(size: int) -> None:
            with LOCK:
                SENT[layer]["bytes"] += size

        if self.command == "GET":
            with LOCK:
                SENT[layer]["requests"] += 1
            while (HERE / "hold").exists():
                time.sleep(0.1)
        self.pass_on(address.path, sent)


def serve(port: int, handler: type[Handler]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(HERE / "hub.pem")
    server = ThreadingHTTPServer(("0.0.0.0", port), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    threading.Thread(target=serve, args=(LAYERS_PORT, Layers), daemon=True).start()
    serve(PORT, Registry)
