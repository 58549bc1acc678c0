"""An HTTP proxy that counts what it sends, and cuts, delays, throttles and damages it as it is told."""

import base64
import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

NOT_FORWARDED = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Proxy:
    """Forwards HTTP to `upstream`. `sent`: bytes of bodies that left it, by the last part of the path.

    For a name in `cut`, so many answers end in their middle; in `busy`, so many are `busy_answer` with a
    Retry-After; in `damaged`, a byte of each answer is another one. `always` answers everything. Each answer waits
    `pause` seconds. `signed` counts the requests with credentials.
    """

    upstream: str = ""
    cut: Counter[str] = field(default_factory=Counter[str])
    busy: Counter[str] = field(default_factory=Counter[str])
    damaged: set[str] = field(default_factory=set[str])
    always: tuple[int, str] | None = None
    busy_answer: tuple[int, str] = (503, "<Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>")
    sent: Counter[str] = field(default_factory=Counter[str])
    gets: Counter[str] = field(default_factory=Counter[str])
    heads: list[str] = field(default_factory=list[str])
    signed: int = 0
    most_at_once: int = 0
    at_once: int = 0
    pause: float = 0.0
    megabytes_per_second: float | None = None
    url: str = ""

    @contextmanager
    def serving(self) -> Generator["Proxy"]:
        handler = type("Handler", (_Forward,), {"proxy": self})
        server = _Server(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are what this is for."""


class _Forward(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.proxy.at_once += 1
        self.proxy.most_at_once = max(self.proxy.most_at_once, self.proxy.at_once)
        try:
            self._forward()
        finally:
            self.proxy.at_once -= 1

    def _forward(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if self.proxy.always:
            self._answer(*self.proxy.always)
            return
        if self.proxy.busy[name] > 0:
            self.proxy.busy[name] -= 1
            self._answer(*self.proxy.busy_answer)
            return
        self.proxy.signed += "Authorization" in self.headers
        if self.command == "HEAD":
            self.proxy.heads.append(path)
        status, headers, body = self._upstream()
        self.proxy.gets[name] += self.command == "GET"
        if self.command == "GET" and name in self.proxy.damaged:
            body = body[:1] + bytes([body[1] ^ 1]) + body[2:]
        self.send_response_only(status)
        for header, value in headers:
            self.send_header(header, value)
        self.end_headers()
        whole = len(body)
        if body and self.proxy.cut[name] > 0 and self.command == "GET":
            self.proxy.cut[name] -= 1
            body = body[: whole // 2]
            self.close_connection = True
        if self.proxy.pause:
            time.sleep(self.proxy.pause)
        with suppress(ConnectionError):
            self._paced(body)
            self.proxy.sent[name] += len(body)

    def _paced(self, body: bytes) -> None:
        rate = self.proxy.megabytes_per_second
        begun, step = time.monotonic(), 1 << 20
        for start in range(0, len(body), step if rate else len(body)):
            if rate:
                time.sleep(max(0.0, begun + start / rate / 1e6 - time.monotonic()))
            self.wfile.write(body[start : start + (step if rate else len(body))])

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _upstream(self) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=30)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for header, value in self.headers.items():
            connection.putheader(header, value)
        connection.endheaders(content or None)
        answer = connection.getresponse()
        # The XML protocol's ETag is the MD5 in hexadecimal; fake-gcs-server has the JSON protocol's base64.
        body = re.sub(rb"(?<=<ETag>)([\w+/]{22}==)(?=</ETag>)", lambda found: _hex(found[1]), answer.read())
        headers = [(k, v) for k, v in _hex_etag(answer.getheaders()) if k.lower() not in NOT_FORWARDED]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        connection.close()
        return answer.status, [*headers, ("Content-Length", length or "0")], body

    def _answer(self, status: int, text: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "1")
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())


def _hex(base64_md5: bytes) -> bytes:
    return base64.b64decode(base64_md5).hex().encode()


def _hex_etag(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    found = {name.lower(): value for name, value in headers}.get("etag", "")
    if not re.fullmatch(r'"[\w+/]{22}=="', found):
        return headers
    etag = f'"{_hex(found.encode()).decode()}"'
    return [(name, etag if name.lower() == "etag" else value) for name, value in headers]
