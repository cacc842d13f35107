"""Serves the stand-in repositories, and passes Debian's archive and the Python package index on, each file kept.

Runs inside a container of the lab: python3 server.py DEBIAN_ARCHIVE_URL. Below /srv: repositories/ (the stand-ins),
downloads/ (what was fetched before), program/ (this file).
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

REPOSITORIES, DOWNLOADS = Path("/srv/repositories"), Path("/srv/downloads")
CHANGING = ("InRelease", "Release", "Release.gpg")  # asked for anew each time; everything else is kept for good


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
        self.send_response(200)
        self.send_header("Content-Length", str(kept.stat().st_size))
        self.end_headers()
        with kept.open("rb") as file:
            shutil.copyfileobj(file, self.wfile)

    def fetch(self, target: str) -> Path:
        """The file of that address, from an earlier download if it cannot have changed."""
        kept = DOWNLOADS / hashlib.sha256(target.encode()).hexdigest()
        if kept.exists() and (not target.endswith(CHANGING) or "/by-hash/" in target):
            return kept
        with urllib.request.urlopen(target, timeout=60) as answer, tempfile.NamedTemporaryFile(dir=DOWNLOADS, delete=False) as part:
            shutil.copyfileobj(answer, part)
        if "/dists/" in target and "/by-hash/" not in target:
            return Path(part.name).rename(kept.with_suffix(".now"))
        os.replace(part.name, kept)
        return kept


if __name__ == "__main__":
    Handler.archive = sys.argv[1]
    ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()
