"""A model hub of one repository on this machine, which also serves its files as plain ones; it notes what is asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + 34 * "0"
REPOSITORY = "org/tiny"


class HubServer(ThreadingHTTPServer):
    """`asked` has the path and the range of all files that were read, in turn."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[str, int, int]] = []

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is none of ours."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/models/{REPOSITORY}(?:/revision/([^/]+))?", path):
            self._json({"id": REPOSITORY, "sha": COMMIT}, match[1])
        elif match := re.fullmatch(rf"/api/models/{REPOSITORY}/tree/([^/]+)", path):
            self._json([self._entry(file) for file in sorted(self.server.folder.iterdir())], match[1])
        elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/{COMMIT}/([^/]+)|/files/([^/]+)", path):
            self._file(self.server.folder / (match[1] or match[2]))
        elif path.strip("/") == "files":
            links = [f'<a href="{file.name}">{file.name}</a>' for file in self.server.folder.iterdir()]
            self._answer(200, "\n".join(links).encode(), {"Content-Type": "text/html"})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"blob of {file.name}"}

    def _json(self, content: object, revision: str | None) -> None:
        if revision in (None, "main", COMMIT):
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]), len(data) - 1)) if wanted else (0, len(data) - 1)
        if self.command == "GET":
            self.server.asked.append((file.name, first, last + 1))
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{file.name}"'}
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206 if wanted else 200, data[first : last + 1], headers)

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_of(folder: Path) -> Iterator[HubServer]:
    """A hub with the files in `folder`."""
    with HubServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
