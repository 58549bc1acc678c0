"""How fast `runtime.fetch` is beside a plain copy of the same objects, one after the other, by the same library.

    .venv/bin/python -m tests.benchmarks.fetch [--mib 512] [--shards 4] [--rounds 5] [--mbps 100] [--json]

The server is fake-gcs-server on this machine. Stores in a cloud give one connection a part of what a node's network
carries: with --mbps each answer leaves no faster than so many megabytes a second. Both contenders are fresh processes,
and both write to the same disk; the plain one compares no checksums (the fetch: sha256) and flushes nothing.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.object_stores import BUCKET, Store, gcs_store

ROOT = Path(__file__).parents[2]
PLAIN = """
import obstore, sys
from obstore.store import GCSStore
store = GCSStore(sys.argv[1], prefix=sys.argv[2], client_options={"allow_http": True, "timeout": "1 hour"})
for entry in obstore.list_with_delimiter(store)["objects"]:
    with open(f"{sys.argv[3]}/{entry['path']}", "wb") as file:
        for chunk in obstore.get(store, entry["path"]):
            file.write(chunk)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fetch")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mbps", type=float, help="megabytes a second of one answer; as fast as it goes without")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    content = os.urandom((args.mib << 20) // args.shards)
    names = [f"model-{n}.safetensors" for n in range(args.shards)]
    digest = hashlib.sha256(content).hexdigest()
    with gcs_store(direct=args.mbps is None) as store:
        store = store.fresh()
        store.put(dict.fromkeys(names, content))
        store.put({"SHA256SUMS": "".join(f"{digest}  {name}\n" for name in names).encode()})
        store.proxy.megabytes_per_second = args.mbps
        rounds = [(_plain(store), _fetch(store)) for _ in range(args.rounds)]
    size = len(content) * args.shards / 1e6
    found = {
        "plain_mb_s": statistics.median(size / plain for plain, _ in rounds),
        "fetch_mb_s": statistics.median(size / fetch for _, fetch in rounds),
        "ratio": statistics.median(plain / fetch for plain, fetch in rounds),
    }
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"{size:.0f} MB in {args.shards} files, median of {args.rounds} rounds")
    print(f"one after the other: {found['plain_mb_s']:.0f} MB/s; runtime.fetch: {found['fetch_mb_s']:.0f} MB/s")
    print(f"runtime.fetch has {found['ratio']:.2f} times the rate, its checksums and flushes included")
    return 0


def _plain(store: Store) -> float:
    return _timed(store, lambda folder: [sys.executable, "-c", PLAIN, BUCKET, store.prefix, folder])


def _fetch(store: Store) -> float:
    command = [sys.executable, "-m", "runtime.fetch", "--source", store.source, "--revision", "v1", "--into"]
    return _timed(store, lambda folder: [*command, folder])


def _timed(store: Store, command: Callable[[str], list[str]]) -> float:
    folder = tempfile.mkdtemp(dir=os.environ.get("TMPDIR"))
    try:
        begun = time.monotonic()
        subprocess.run(command(folder), cwd=ROOT, env=os.environ | store.env, check=True, capture_output=True)
        return time.monotonic() - begun
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
