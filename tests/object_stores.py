"""S3, Google Cloud Storage and Azure Blob Storage on this machine, behind a proxy that counts and misbehaves.

S3 is moto's server, Azure is Azurite, Cloud Storage is fake-gcs-server; `make object-stores` gets the last two.
"""

import base64
import email.utils
import hashlib
import hmac
import http.client
import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

import obstore
import pytest
from obstore.store import S3Store

from runtime.process_tree import die_with_parent
from tests.ports import free_ports

BINARIES = Path(os.environ.get("OBJECT_STORES") or Path.home() / ".cache/tritonfleet/object-stores")
MOTO = Path(__file__).parents[1] / ".venv" / "moto" / "bin" / "python"
BUCKET = "weights"
BINARY = {"Content-Type": "application/octet-stream"}
# Azurite's published account.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
NOT_FORWARDED = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Proxy:
    """Forwards HTTP to `upstream`. `sent`: bytes of bodies that left it, by the last part of the path.

    For a name in `cut`, so many answers end in their middle; in `busy`, so many are `busy_answer` with a
    Retry-After; in `damaged`, a byte of each answer is another one. `always` answers everything. Each answer waits
    `pause` seconds.
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


@dataclass
class Store:
    """One bucket of one store: what a fetch is told to reach it, and the proxy before it."""

    scheme: str
    proxy: Proxy
    env: dict[str, str]
    prefix: str = "models"

    @property
    def source(self) -> str:
        return f"{self.scheme}://{BUCKET}/{self.prefix}"

    def fresh(self) -> "Store":
        """The same server with a prefix where nothing lies, before a proxy that behaves."""
        self.proxy.__init__(self.proxy.upstream, url=self.proxy.url)
        return replace(self, prefix=f"models/{uuid.uuid4()}")

    def put(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            path = f"{self.prefix}/{name}"
            if self.scheme == "s3":
                obstore.put(_s3(self.proxy.upstream), path, content, use_multipart=False)
            elif self.scheme == "gs":
                url = (
                    f"{self.proxy.upstream}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(path, safe='')}"
                )
                _request("POST", url, content, {"Content-Type": "application/octet-stream"})
            else:
                _azure_put(self.proxy.upstream, f"{BUCKET}/{path}", content)


@contextmanager
def s3_store() -> Generator[Store]:
    if not MOTO.exists():
        pytest.skip("no moto here: `make setup` installs it")
    (port,) = free_ports(1)
    command = [MOTO, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with Proxy(f"http://127.0.0.1:{port}").serving() as proxy, _running(command, port):
        _request("PUT", f"{proxy.upstream}/{BUCKET}", b"")
        env = {"AWS_ENDPOINT_URL": proxy.url, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "a"}
        yield Store("s3", proxy, env | {"AWS_SECRET_ACCESS_KEY": "b"})


@contextmanager
def gcs_store(*, direct: bool = False) -> Generator[Store]:
    """`direct`: clients reach the server without the proxy."""
    server = BINARIES / "fake-gcs-server"
    if not server.exists():
        pytest.skip("no Cloud Storage server here: `make object-stores` builds one")
    (port,) = free_ports(1)
    with Proxy(f"http://127.0.0.1:{port}").serving() as proxy:
        command = [server, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
        url = proxy.upstream if direct else proxy.url
        host = urlsplit(url).netloc
        with _running([*command, "-public-host", host, "-external-url", url, "-log-level", "error"], port):
            body = json.dumps({"name": BUCKET}).encode()
            _request("POST", f"{proxy.upstream}/storage/v1/b?project=p", body, {"Content-Type": "application/json"})
            env = {"GOOGLE_BASE_URL": url, "GOOGLE_ALLOW_HTTP": "true", "GOOGLE_SKIP_SIGNATURE": "true"}
            yield Store("gs", proxy, env)


@contextmanager
def azure_store() -> Generator[Store]:
    server = BINARIES / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not server.exists():
        pytest.skip("no Azure Blob server here: `make object-stores` installs Azurite")
    (port,) = free_ports(1)
    command = ["node", server, "--inMemoryPersistence", "--blobPort", str(port), "--silent", "--skipApiVersionCheck"]
    with Proxy(f"http://127.0.0.1:{port}").serving() as proxy, _running(command, port):
        _azure_put(proxy.upstream, BUCKET, None)
        env = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_ALLOW_HTTP": "true"}
        yield Store("az", proxy, env | {"AZURE_ENDPOINT": f"{proxy.url}/{ACCOUNT}"})


STORES = {"s3": s3_store, "gs": gcs_store, "az": azure_store}


class Servers(dict[str, Store]):
    """The stores by scheme, each started when a test first asks for it."""

    def __init__(self, running: ExitStack) -> None:
        self._running = running

    def __missing__(self, scheme: str) -> Store:
        self[scheme] = self._running.enter_context(STORES[scheme]())
        return self[scheme]


@contextmanager
def _running(command: list[Any], port: int) -> Generator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    try:
        for _ in range(600):
            with suppress(OSError):
                http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
                break
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _s3(upstream: str) -> S3Store:
    return S3Store(
        BUCKET, endpoint=upstream, access_key_id="a", secret_access_key="b", client_options={"allow_http": True}
    )


def _request(method: str, url: str, content: bytes | None, headers: dict[str, str] | None = None) -> None:
    with urlopen(Request(url, content, headers or {}, method=method), timeout=30) as answer:
        answer.read()


def _azure_put(upstream: str, path: str, content: bytes | None) -> None:
    """Makes a blob, or a container where there is no content."""
    container = content is None
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    if not container:
        headers["x-ms-blob-type"] = "BlockBlob"
    kind = "" if container else "application/octet-stream"
    signed = "\n".join(f"{name}:{value}" for name, value in sorted(headers.items()))
    query = "\nrestype:container" if container else ""
    length = str(len(content)) if content else ""
    text = f"PUT\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{signed}\n/{ACCOUNT}/{ACCOUNT}/{path}{query}"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    url = f"{upstream}/{ACCOUNT}/{path}{'?restype=container' if container else ''}"
    _request("PUT", url, content, headers | ({"Content-Type": kind} if kind else {}))
