"""Lets pods onto a MIG node once its GPUs are divided, and does nothing else.

Where the MIG manager divides, nodes are born with a taint. It goes when a node has the labels of its pool's pods (among
them the manager's report of success) and offers as many slices as its GPUs have: before that, a slice could be a whole
GPU, or the autoscaler would see a ready node on which nothing fits, and add another. Where the cloud divides, nodes are
born with a label that keeps the device plugin away, so that they offer no GPU. It changes when GPU feature discovery
has seen slices of the wanted size. Standard library only; shipped as a ConfigMap.
"""

import http.client
import json
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/mig"
POOL, PLUGIN, PRODUCT = "tritonfleet.io/pool", "nvidia.com/gpu.deploy.device-plugin", "nvidia.com/gpu.product"
# For each pool: the labels of a divided node; and the resource that is a slice of its GPUs, and how many of it there
# are, or else what the name of its GPUs has in it.
POOLS = json.loads(os.environ.get("POOLS", "[]"))

CREDENTIALS = Path(os.environ.get("CREDENTIALS", "/var/run/secrets/kubernetes.io/serviceaccount"))
HEARTBEAT = Path(os.environ.get("HEARTBEAT", "/run/mig-gate/alive"))
# A watch ends after this and begins anew with every node, so nothing is missed for longer.
WATCH_SECONDS = int(os.environ.get("WATCH_SECONDS", "60"))
RETRY_SECONDS = 5


def main() -> None:
    # The first process of a container ignores SIGTERM unless it says otherwise.
    signal.signal(signal.SIGTERM, stop)
    log(f"opening nodes that are as these pools say: {json.dumps(POOLS)}")
    while True:
        HEARTBEAT.touch()
        try:
            for node in pool_nodes():
                open_gate(node)
        except (OSError, ValueError, http.client.HTTPException) as error:
            log(f"watching nodes: {error}; again in {RETRY_SECONDS} s")
            time.sleep(RETRY_SECONDS)


def alive() -> bool:
    """Whether the loop still turns, also while the API server is away: what the probes ask, in a process of theirs."""
    return HEARTBEAT.exists() and time.time() - HEARTBEAT.stat().st_mtime < 3 * (WATCH_SECONDS + RETRY_SECONDS)


def pool_nodes() -> Iterator[dict[str, Any]]:
    """Every node of the pools now, then each one as it changes, until the watch ends."""
    names = ",".join(pool["labels"][POOL] for pool in POOLS)
    query = urllib.parse.urlencode(
        {"watch": "true", "labelSelector": f"{POOL} in ({names})", "timeoutSeconds": WATCH_SECONDS}
    )
    with call("GET", f"/api/v1/nodes?{query}") as events:
        for line in events:
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise ValueError(event["object"].get("message", event))
            if event["type"] in ("ADDED", "MODIFIED"):
                yield event["object"]


def open_gate(node: dict[str, Any]) -> None:
    name, taints, labels = node["metadata"]["name"], node["spec"].get("taints", []), node["metadata"].get("labels", {})
    if not any(divided(node, pool) for pool in POOLS):
        return
    patch: list[dict[str, Any]] = []
    for index in reversed(range(len(taints))):
        if taints[index]["key"] == TAINT:
            # The test refuses the patch when somebody changed the taints meanwhile; their change is the next event.
            patch.append({"op": "test", "path": f"/spec/taints/{index}", "value": taints[index]})
            patch.append({"op": "remove", "path": f"/spec/taints/{index}"})
    if labels.get(PLUGIN) == "false":
        patch.append({"op": "replace", "path": f"/metadata/labels/{PLUGIN.replace('/', '~1')}", "value": "true"})
    if not patch:
        return
    try:
        with call("PATCH", f"/api/v1/nodes/{urllib.parse.quote(name)}", patch):
            log(f"{name}: open")
    except urllib.error.HTTPError as error:
        log(f"{name}: {error}: {error.read(300)!r}")


def divided(node: dict[str, Any], pool: dict[str, Any]) -> bool:
    labels = node["metadata"].get("labels", {})
    if not pool["labels"].items() <= labels.items():
        return False
    if "product" in pool:
        return pool["product"] in labels.get(PRODUCT, "")
    return int(node.get("status", {}).get("allocatable", {}).get(pool["resource"], "0")) >= pool["slices"]


def call(method: str, path: str, body: object = None) -> http.client.HTTPResponse:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"[{host}]" if ":" in host else host
    headers = {
        # Read each time: kubelet renews the token.
        "Authorization": f"Bearer {(CREDENTIALS / 'token').read_text().strip()}",
        "Content-Type": "application/json-patch+json",
    }
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"https://{address}:{port}{path}", data, headers, method=method)
    context = ssl.create_default_context(cafile=str(CREDENTIALS / "ca.crt"))
    # Since Python 3.13 a CA must name its own key, which that of EKS does not (kubernetes-client/python#2394).
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return urllib.request.urlopen(request, timeout=2 * WATCH_SECONDS, context=context)


def stop(*_: object) -> None:
    sys.exit(0)


def log(text: str) -> None:
    print(f"mig-gate: {text}", flush=True)


if __name__ == "__main__":
    if "--alive" in sys.argv[1:]:
        sys.exit(0 if alive() else 1)
    main()
