"""What a cluster's API server answers to the questions of components/clouds/existing/reach.py, on loopback."""

import json
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

NAME = "test"


@dataclass
class Answers:
    """By default those of an administrator on a new kind cluster; `status` by path takes an answer's place."""

    version: Mapping[str, str] = field(default_factory=lambda: {"major": "1", "minor": "36"})
    classes: Mapping[str, str] = field(default_factory=lambda: {"standard": "rancher.io/local-path"})
    refused: frozenset[str] = frozenset()
    groups: Iterable[str] = ("apps",)
    status: Mapping[str, int] = field(default_factory=dict[str, int])
    asked: list[str] = field(default_factory=list[str])


@contextmanager
def api_server(answers: Answers) -> Generator[str]:
    """The server's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(_get(answers, self.path.rstrip("/")))

        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            resource = review["spec"]["resourceAttributes"]["resource"]
            self._answer({**review, "status": {"allowed": resource not in answers.refused}})

        def log_message(self, format: str, *args: object) -> None:  # noqa: ARG002 - the base class's
            answers.asked.append(f"{self.command} {self.path}")

        def _answer(self, document: object) -> None:
            content = json.dumps(document).encode()
            self.send_response(answers.status.get(self.path.rstrip("/"), 200))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(path: Path, server: str, *, contexts: Iterable[str] = (NAME,)) -> Path:
    """A kubeconfig whose contexts all lead to that server; the first is the current one."""
    names = list(contexts)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": names[0],
        "clusters": [{"name": NAME, "cluster": {"server": server}}],
        "users": [{"name": NAME, "user": {"token": "a token"}}],
        "contexts": [{"name": name, "context": {"cluster": NAME, "user": NAME}} for name in names],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _get(answers: Answers, path: str) -> dict[str, Any]:
    if path == "/version":
        rest = ("gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
        return dict.fromkeys(rest, "") | dict(answers.version)
    if path == "/apis":
        listed = [
            {"name": name, "versions": [{"groupVersion": f"{name}/v1", "version": "v1"}]} for name in answers.groups
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    items = [{"metadata": {"name": name}, "provisioner": provisioner} for name, provisioner in answers.classes.items()]
    return {"kind": "StorageClassList", "apiVersion": "storage.k8s.io/v1", "items": items}
