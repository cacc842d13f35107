"""Serves the stand-in repositories, and some Python packages, and Debian's archive, passed on and kept.

Runs inside a container of the lab: python3 server.py DEBIAN_ARCHIVE_URL. Below /srv: repositories/ (the stand-ins),
downloads/ (what was fetched before), wheels/ (the Python packages), program/ (this file).
"""

import hashlib
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORIES, DOWNLOADS, WHEELS = Path("/srv/repositories"), Path("/srv/downloads"), Path("/srv/wheels")
KEPT = ("/pool/", "/by-hash/")  # files below these never change; the others are asked for anew each time


def upstream_of(path: str, archive: str) -> str | None:
    """Address that a path of the mirror stands for, if it is passed on."""
    archive = archive.rstrip("/")
    for prefix, target in (("/debian-security/", f"{archive}-security/"), ("/debian/", f"{archive}/")):
        if path.startswith(prefix):
            return target + path.removeprefix(prefix)
    return None


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    archive = ""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, directory=str(REPOSITORIES), **options)

    def do_GET(self) -> None:
        if self.path.startswith("/pypi/simple/"):
            self.list_wheels(self.path.removeprefix("/pypi/simple/").strip("/"))
            return
        if self.path.startswith("/pypi/files/"):
            self.send_file(WHEELS / Path(self.path).name)
            return
        target = upstream_of(self.path, self.archive)
        if target is None:
            super().do_GET()
            return
        try:
            kept = self.fetch(target)
        except urllib.error.HTTPError as problem:
            self.send_error(problem.code)
            return
        except OSError as problem:
            self.send_error(502, str(problem))
            return
        self.send_file(kept)

    def send_file(self, path: Path) -> None:
        if not path.is_file():
            self.send_error(404)
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile)

    def list_wheels(self, project: str) -> None:
        """A project's page of the simple index (PEP 503)."""
        names = [
            path.name
            for path in sorted(WHEELS.glob("*.whl"))
            if path.name.split("-")[0].lower().replace("_", "-") == project
        ]
        page = "".join(f'<a href="/pypi/files/{name}">{name}</a>\n' for name in names).encode()
        self.send_response(200 if names else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def fetch(self, target: str) -> Path:
        """The file of that address, from an earlier download if it cannot have changed."""
        kept = DOWNLOADS / hashlib.sha256(target.encode()).hexdigest()
        if kept.exists() and any(part in target for part in KEPT):
            return kept
        with (
            urllib.request.urlopen(target, timeout=60) as answer,
            tempfile.NamedTemporaryFile(dir=DOWNLOADS, delete=False) as part,
        ):
            shutil.copyfileobj(answer, part)
        os.replace(part.name, kept)
        return kept


if __name__ == "__main__":
    Handler.archive = sys.argv[1]
    ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()
