"""The clouds' metadata services on loopback, as strict as their own, for the notice of spot nodes."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a session's token"


class Metadata:
    """The three services. `noticed` is set when the node is taken back; `events` are Azure's."""

    def __init__(self) -> None:
        self.noticed = threading.Event()
        self.asked: list[str] = []
        self.down = False
        self.address = ""

    def answer(self, method: str, path: str, headers: Message) -> tuple[int, str]:
        self.asked.append(path)
        if self.down:
            return 500, ""
        if path == "/latest/api/token":
            is_sound = method == "PUT" and 1 <= int(headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600
            return (200, TOKEN) if is_sound else (400, "")
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("X-aws-ec2-metadata-token") != TOKEN:
                return 401, ""
            notice = {"action": "terminate", "time": "2026-11-21T17:02:07Z"}
            return (200, json.dumps(notice)) if self.noticed.is_set() else (404, "")
        if path.startswith("/computeMetadata/v1/instance/preempted"):
            if headers.get("Metadata-Flavor") != "Google":
                return 403, ""
            if "wait_for_change=true" in path:
                self.noticed.wait(0.3)
            return 200, "TRUE" if self.noticed.is_set() else "FALSE"
        if headers.get("Metadata") != "true":
            return 400, ""
        if path.startswith("/metadata/instance/compute/name"):
            return 200, "aks-h100sp-1234-vmss_3"
        if path.startswith("/metadata/scheduledevents"):
            mine = {"EventType": "Preempt", "Resources": ["aks-h100sp-1234-vmss_3"], "EventStatus": "Scheduled"}
            others = [
                {"EventType": "Preempt", "Resources": ["aks-h100sp-1234-vmss_4"], "EventStatus": "Scheduled"},
                {"EventType": "Freeze", "Resources": ["aks-h100sp-1234-vmss_3"], "EventStatus": "Scheduled"},
            ]
            return 200, json.dumps({"Events": [*others, *([mine] if self.noticed.is_set() else [])]})
        return 404, ""


@contextmanager
def metadata_service() -> Generator[Metadata]:
    """A service at `address` of the host that this thread is on."""
    service = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = service.answer(self.command, self.path, self.headers)
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.address = f"127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        service.noticed.set()
        server.shutdown()
        server.server_close()
