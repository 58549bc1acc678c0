"""A Hugging Face Hub on this machine: the requests that huggingface_hub makes to download a repository, and no others.

As on the real one, weights lie behind a redirect to another server with their sha256, small files are served in place
with git's id of them, lists come in pages, anyone may list a gated repository, and the header X-Error-Code says what a
status means.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a_token_that_may_read"
PAGE = 3  # entries of a list; the real Hub gives 1000
CHUNK = 1 << 16


@dataclass
class Hub:
    """Repositories `ORG/NAME` of one commit each, and how they were asked for.

    A path in `stalled` is served to its half and not further until `release` is called; `damaged` ones arrive in their
    size with other content. `status` is answered to everything.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set[str])
    private: set[str] = field(default_factory=set[str])
    stalled: set[str] = field(default_factory=set[str])
    damaged: set[str] = field(default_factory=set[str])
    status: int | None = None
    gets: Counter[str] = field(default_factory=Counter[str])
    url: str = ""
    cdn: str = ""

    def __post_init__(self) -> None:
        self.go_on = threading.Event()

    def release(self) -> None:
        self.stalled.clear()
        self.go_on.set()

    @contextmanager
    def serving(self, address: str = "127.0.0.1") -> Generator["Hub"]:
        handler = type("Handler", (_Handler,), {"hub": self})
        servers = [ThreadingHTTPServer((address, 0), handler) for _ in range(2)]
        self.url, self.cdn = (f"http://{address}:{server.server_port}" for server in servers)
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.go_on.set()
            for server in servers:
                server.shutdown()
                server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/").split("/")
        if self.hub.status is not None:
            self._fail(self.hub.status, None)
        elif path[0] == "lfs":
            self._lfs("/".join(path[1:3]), "/".join(path[3:]))
        elif path[:2] == ["api", "models"]:
            self._list("/".join(path[2:4]), path[4], path[5])
        else:
            self._resolve("/".join(path[0:2]), path[3], "/".join(path[4:]))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _list(self, name: str, what: str, revision: str) -> None:
        if not self._may_see(name, revision):
            return
        files = self.hub.repositories[name]
        if what == "revision":
            self._json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
            return
        folders = {path.rsplit("/", 1)[0] for path in files if "/" in path}
        entries: list[dict[str, Any]] = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        entries += [_entry(path, content) for path, content in files.items()]
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        page = f"{self.hub.url}/api/models/{name}/tree/{revision}?recursive=True&cursor={start + PAGE}"
        more = {"Link": f'<{page}>; rel="next"'} if start + PAGE < len(entries) else {}
        self._json(entries[start : start + PAGE], more)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if not self._may_see(name, revision):
            return
        if name in self.hub.gated and not self._knows():
            self._fail(403 if "Authorization" in self.headers else 401, "GatedRepo")
            return
        content = self.hub.repositories[name].get(path)
        if content is None:
            self._fail(404, "EntryNotFound")
            return
        lfs = _entry(path, content).get("lfs")
        if lfs is None:
            self._send(content, path, {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": COMMIT})
            return
        self._headers(
            302,
            0,
            {
                "Location": f"{self.hub.cdn}/lfs/{name}/{path}",
                "X-Linked-Etag": f'"{lfs["oid"]}"',
                "X-Linked-Size": str(lfs["size"]),
                "X-Repo-Commit": COMMIT,
            },
        )

    def _lfs(self, name: str, path: str) -> None:
        assert "Authorization" not in self.headers, "the token is none of another server's business"
        self._send(self.hub.repositories[name][path], path, {})

    def _may_see(self, name: str, revision: str) -> bool:
        hidden = name in self.hub.private and not self._knows()
        if name not in self.hub.repositories or hidden:
            # Strangers are told the same of what is private and of what is not there.
            self._fail(404 if self._knows() else 401, "RepoNotFound")
        elif revision not in (COMMIT, "v1"):
            self._fail(404, "RevisionNotFound")
        else:
            return True
        return False

    def _knows(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _send(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        total, start = len(content), 0
        asked = self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers = headers | {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        self._headers(206 if asked else 200, total - start, headers)
        if self.command == "HEAD":
            return
        self.hub.gets[path] += 1
        if path in self.hub.damaged:
            content = bytes(reversed(content))
        for offset in range(start, total, CHUNK):
            if path in self.hub.stalled and offset >= total // 2:
                self.hub.go_on.wait()
            try:
                self.wfile.write(content[offset : offset + CHUNK])
            except ConnectionError:
                self.close_connection = True
                return

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._headers(200, len(body), {"Content-Type": "application/json"} | (headers or {}))
        if self.command == "GET":
            self.wfile.write(body)

    def _fail(self, status: int, code: str | None) -> None:
        self._headers(status, 0, {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def _headers(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()


@lru_cache(maxsize=64)
def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if path.endswith((".safetensors", ".bin", ".pth")):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
