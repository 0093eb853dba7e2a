"""A hub on this machine: the few routes that `huggingface_hub` and `datasets` call.

Files of at least `LFS_BYTES` are what the hub keeps in LFS: it knows their sha256. The branch can
be resolved to its commit and is good for nothing else: it may move at any time.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1000
COMMIT, BRANCH = "c0ffee" + "0" * 34, "main"


def git_blob(content: bytes) -> str:
    """Return what git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(content: bytes) -> str:
    """Return what the hub calls a file's content, and the local cache the file that holds it."""
    return hashlib.sha256(content).hexdigest() if len(content) >= LFS_BYTES else git_blob(content)


def make_cache(home: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Lay out what a download leaves below HF_HOME, and return the folder of the snapshot."""
    base = home / "hub" / f"datasets--{name.replace('/', '--')}"
    snapshot = base / "snapshots" / COMMIT
    (base / "refs").mkdir(parents=True)
    (base / "refs" / BRANCH).write_text(COMMIT)
    (base / "blobs").mkdir()
    for path, content in files.items():
        blob = base / "blobs" / etag(content)
        blob.write_bytes(content)
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(blob)
    return snapshot


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.requests: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(
            f"{self.command} {path} {self.headers.get('Range', '')}".strip()
        )
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for name, files in self.server.repositories.items():
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if re.fullmatch(rf"{api}/revision/({BRANCH}|{COMMIT})", path):
                self._send_json({"_id": "1", "id": name, "sha": COMMIT, "siblings": [], "tags": []})
            elif path.startswith(f"{api}/revision/"):
                self._fail("RevisionNotFound", "Invalid rev id")
            elif match := re.fullmatch(rf"{api}/tree/{COMMIT}/?(.*)", path):
                recursive = "recursive=true" in self.path.lower()
                self._send_json(_tree(files, match[1], recursive))
            elif path == f"{api}/paths-info/{COMMIT}":
                asked = json.loads(body)["paths"]
                self._send_json([item for item in _tree(files, "", True) if item["path"] in asked])
            elif path.startswith(resolve):
                self._send_file(files, *path.removeprefix(resolve).split("/", 1))
            else:
                continue
            return
        self._fail("RepoNotFound", "Repository not found")

    def _send_file(self, files: Mapping[str, bytes], revision: str, path: str) -> None:
        if revision != COMMIT:
            self._fail("RevisionNotFound", "Invalid rev id")
            return
        if path not in files:
            self._fail("EntryNotFound", "Entry not found")
            return
        content = files[path]
        status, part = 200, content
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            end = int(match[2]) + 1 if match[2] else len(content)
            status, part = 206, content[int(match[1]) : end]
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if status == 206:
            start = int(match[1]) if match else 0
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self._send(status, part, headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, code: str, message: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # a client that was killed
                self.wfile.write(body)


def _tree(files: Mapping[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
    items: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            items[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        items[path] = {
            "type": "file",
            "path": path,
            "oid": git_blob(content),
            "size": len(content),
        }
        if len(content) >= LFS_BYTES:
            lfs = {"oid": etag(content), "size": len(content), "pointerSize": 134}
            items[path]["lfs"] = lfs
    start = f"{below}/" if below else ""
    inside = [item for path, item in items.items() if path.startswith(start)]
    return [item for item in inside if recursive or item["path"].count("/") == start.count("/")]


@contextlib.contextmanager
def serve(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve data sets, `{name: files}`; yield the address and the requests as they come."""
    server = _Server(repositories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
