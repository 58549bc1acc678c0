"""The one entry point for every pod of a group, and for a laptop.

    python -m runtime.launch --model-repository DIR --engine DIR

The leader checks everything that can be known before anything starts, gathers the group's other hosts, starts one
rank per engine file with mpirun, and keeps the group alive: whole, or not at all. Workers join the leader and run
what it asks. Without --group-size (or LWS_GROUP_SIZE) the group is this host alone.

Exit status: 0 after SIGTERM or SIGINT, 1 when the group failed to start, 2 for a request refused before anything
started.
"""

import argparse
import asyncio
import contextlib
import fcntl
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import psutil

from runtime import leader, worker
from runtime.errors import Refusal
from runtime.host import host_facts
from runtime.mpi import find_mpirun
from runtime.process_tree import ProcessTree, become_subreaper
from runtime.rank import HostSettings
from runtime.rendezvous import Timing, read_token
from runtime.spec import world_size
from runtime.spot_notice import CLOUDS, end_on_notice
from runtime.store import EngineStore, check_loadable, read_manifest
from runtime.triton import LOG_FLAGS, Endpoints, find_triton, missing_models


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _launch(options)
    except Refusal as refusal:
        print(f"refused: {refusal}", file=sys.stderr, flush=True)
        return 2
    except leader.StartFailed as failure:
        print(f"failed: {failure}", file=sys.stderr, flush=True)
        return 1


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _launch(options: argparse.Namespace) -> int:
    try:
        options.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(
            f"the run directory {options.run_dir} cannot be made: {error.strerror}",
            "state and logs would have no place",
            "give a directory that this user may write with --run-dir",
        ) from None
    if options.group_size > 1 and options.leader_address is None:
        raise Refusal(
            f"a group of {options.group_size} hosts needs the leader's address",
            "the hosts could not find each other",
            "set LWS_LEADER_ADDRESS (LeaderWorkerSet does) or give --leader-address",
        )
    if not 0 <= options.worker_index < options.group_size:
        raise Refusal(
            f"worker index {options.worker_index} is not in 0…{options.group_size - 1}",
            "two hosts would take the same place in the group",
            "set LWS_WORKER_INDEX and LWS_GROUP_SIZE (LeaderWorkerSet does), or the flags of the same names",
        )
    with _only_launcher(options.run_dir):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    engine: Path = options.engine.resolve()
    key = read_manifest(engine)["key"]
    ranks_per_host = options.ranks_per_host or _even_share(world_size(key), options.group_size)
    check_loadable(engine, world_size=ranks_per_host * options.group_size, host=host_facts())
    settings = _host_settings(options, key, ranks_per_host)
    timing = Timing(options.heartbeat_seconds, options.dead_after_seconds)
    group = options.group_size > 1
    token = read_token(options.token_file) if group else b""
    if options.spot_notice:
        end_on_notice(options.spot_notice, say)
    become_subreaper()
    ProcessTree.remove_stale()
    with EngineStore(engine.parents[1]).lease(engine.name):
        if options.worker_index > 0:
            place = worker.Place(
                options.leader_address,
                options.rendezvous_port,
                options.worker_index,
                token,
                timing,
                options.drain_seconds,
            )
            return asyncio.run(worker.run(settings, engine.name, place, options.run_dir, say))
        check_ports(settings.endpoints)
        plan = leader.GroupPlan(
            engine=engine.name,
            group_size=options.group_size,
            token=token,
            timing=timing,
            rendezvous=(options.bind, options.rendezvous_port),
            run_dir=options.run_dir,
            drain_seconds=options.drain_seconds,
            stable_seconds=options.stable_seconds,
        )
        return asyncio.run(leader.run(plan, settings, find_mpirun(options.mpirun), say))


def check_ports(endpoints: Endpoints) -> None:
    """Raises Refusal when something else listens on a port that rank 0 needs."""
    taken: list[str] = []
    for name in ("http", "grpc", "metrics"):
        port: int = getattr(endpoints, name)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((endpoints.address, port))
            except OSError:
                taken.append(f"{name} port {port}{_holder(port)}")
    if taken:
        raise Refusal(
            f"already in use on this host: {', '.join(taken)}",
            "the model would load for minutes, and then Triton could not listen",
            "end the process that holds it, or choose others with --http-port, --grpc-port and --metrics-port",
        )


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f" (held by {psutil.Process(connection.pid).name()}, pid {connection.pid})"
    except (psutil.Error, OSError):
        pass  # only the owner of a process, or root, may see whose port it is
    return ""


def _host_settings(options: argparse.Namespace, key: dict[str, Any], ranks_per_host: int) -> HostSettings:
    repository = _repository(options.model_repository)
    if missing_models(repository, ["tensorrt_llm"]):
        raise Refusal(
            f"{repository} holds no model tensorrt_llm with a config.pbtxt",
            "the ranks would have nothing to load",
            "render the model repository first, or correct --model-repository",
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tritonfleet"
    return HostSettings(
        host=socket.gethostname(),
        backend=key["backend"],
        model_repository=str(repository),
        triton=find_triton(cache),
        endpoints=Endpoints(options.bind, options.http_port, options.grpc_port, options.metrics_port),
        log_directory=str(options.run_dir.resolve()),
        tree_directory="",
        shm_prefix="",
        ranks_per_host=ranks_per_host,
        busy_ranks=min(ranks_per_host, key["mapping"]["tensor_parallel"]),
        interface=None,
        temporary_directory=os.environ.get("TMPDIR"),
        log_level=options.log_level,
    )


def _repository(folder: Path) -> Path:
    """The folder that holds the models, and nothing that Triton would take for one.

    A ConfigMap's volume shows its files as links, beside the hidden folders that they lie in (kubelet's AtomicWriter).
    """
    written = folder / "..data"
    return (written if written.is_dir() else folder).resolve()


def _even_share(ranks: int, group_size: int) -> int:
    if ranks % group_size:
        raise Refusal(
            f"the engine has {ranks} ranks, which do not divide evenly among {group_size} hosts",
            "a rank would have no host to run on",
            "use a group size that divides the engine's tensor_parallel * pipeline_parallel",
        )
    return ranks // group_size


@contextlib.contextmanager
def _only_launcher(run_dir: Path) -> Generator[None]:
    """Holds the run directory, so that two launchers never write one state.json. Raises Refusal.

    A frontend sees by this lock whether the launcher lives. A record lock, unlike flock's, can be asked about.
    """
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(
                f"another launcher is using {run_dir}",
                "both would write its state and logs",
                "stop that one first, or give --run-dir another directory",
            ) from None
        yield


def _parser() -> argparse.ArgumentParser:
    env = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m runtime.launch", description="Serve one engine with a group of ranks."
    )
    add = parser.add_argument
    add("--model-repository", type=Path, required=True)
    add("--engine", type=Path, required=True, help="<store>/engines/<id>")
    add("--run-dir", type=Path, default=Path("/run/tritonfleet"), help="state.json and logs")
    add("--ranks-per-host", type=int, default=None, help="default: the engine's ranks divided by the group size")
    add("--http-port", type=tcp_port, default=8000)
    add("--grpc-port", type=tcp_port, default=8001)
    add("--metrics-port", type=tcp_port, default=8002)
    # A laptop's model is nobody else's; a pod's ports are reached through its address.
    add("--bind", default="0.0.0.0" if "LWS_LEADER_ADDRESS" in env else "127.0.0.1", type=_address)
    add("--mpirun", default=None, help="default: the one beside this Python, else the one in PATH")
    add("--rendezvous-port", type=tcp_port, default=8470)
    add("--token-file", type=Path, default=None, help="default: the variable TRITONFLEET_TOKEN")
    add("--leader-address", default=env.get("LWS_LEADER_ADDRESS"))
    add("--group-size", type=int, default=env.get("LWS_GROUP_SIZE", "1"))
    add("--worker-index", type=int, default=env.get("LWS_WORKER_INDEX", "0"))
    add("--heartbeat-seconds", type=float, default=Timing.interval)
    add("--dead-after-seconds", type=float, default=Timing.dead_after)
    add("--drain-seconds", type=float, default=30.0, help="how long requests in flight may take after SIGTERM")
    add("--spot-notice", choices=CLOUDS, help="end as on SIGTERM when this cloud's metadata tells of a reclaim")
    add("--log-level", choices=LOG_FLAGS, default="info", help="what Triton writes to rank<r>.log")
    add("--stable-seconds", type=float, default=60.0, help="ready for this long, a loss starts back-off anew")
    return parser


def tcp_port(text: str) -> int:
    """A TCP port, for argparse."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, 1 to 65535")
    return number


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


if __name__ == "__main__":
    sys.exit(main())
