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
import subprocess
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import obstore
import pytest
from obstore.store import S3Store

from runtime.process_tree import die_with_parent
from tests.fault_proxy import Proxy
from tests.ports import free_ports

BINARIES = Path(os.environ.get("OBJECT_STORES") or Path.home() / ".cache/tritonfleet/object-stores")
MOTO = Path(__file__).parents[1] / ".venv" / "moto" / "bin" / "python"
BUCKET = "weights"
BINARY = {"Content-Type": "application/octet-stream"}
# Azurite's published account.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


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
    with Proxy(f"http://127.0.0.1:{port}").serving() as proxy, running(command, port):
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
        with running([*command, "-public-host", host, "-external-url", url, "-log-level", "error"], port):
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
    with Proxy(f"http://127.0.0.1:{port}").serving() as proxy, running(command, port):
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
def running(command: list[Any], port: int) -> Generator[None]:
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
