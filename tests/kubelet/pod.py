"""Runs one pod of a manifest on one of the two hosts of tests/hosts.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from runtime.process_tree import die_with_parent
from tests.kubelet.volumes import Object, Objects, make_volume

CONTAINER = Path(__file__).with_name("container.py")
# What the serving image has in the places of these: a Python with the packages, and the system's tools.
IMAGE = sorted({sys.prefix, sys.base_prefix})
IMAGE_PATH = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"


@dataclass
class Pod:
    """`host` is the name of its network namespace, `address` its address there; `names` resolves other pods' names.

    `environment` is what others add to every container: LeaderWorkerSet's webhook, or a test.
    """

    name: str
    manifest: Object
    objects: Objects
    folder: Path
    host: str
    address: str
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.spec: Object = self.manifest["spec"]
        self.labels: dict[str, str] = self.manifest["metadata"]["labels"]
        self.security: Object = self.spec.get("securityContext", {})
        self.folder.mkdir(parents=True)
        self.log = self.folder / "log"
        self.log.touch()
        group = self.security.get("fsGroup")
        volumes = self.folder / "volumes"
        self.volumes = {
            volume["name"]: (volume, make_volume(volume, self.objects, volumes, group))
            for volume in self.spec.get("volumes", [])
        }
        hosts = {"localhost": "127.0.0.1", self.name: self.address} | dict(self.names)
        (self.folder / "hosts").write_text("".join(f"{address}\t{name}\n" for name, address in hosts.items()))
        self.process: subprocess.Popen[bytes] | None = None
        self.sidecars: dict[str, subprocess.Popen[bytes]] = {}

    def run_to_its_end(self, seconds: float) -> dict[str, int]:
        """Exit status by container, init containers first, as for a Job's pod: up to the first that fails."""
        statuses: dict[str, int] = {}
        for container in [*self.spec.get("initContainers", []), *self.spec["containers"]]:
            statuses[container["name"]] = self._spawn(container).wait(seconds)
            if statuses[container["name"]]:
                break
        return statuses

    def start(self) -> None:
        """Its sidecars, then its only container; `container` is the latter's manifest."""
        (self.container,) = self.spec["containers"]
        for container in self.spec.get("initContainers", []):
            assert container["restartPolicy"] == "Always"
            assert "startupProbe" not in container, "the next container would have to wait for it"
            self.sidecars[container["name"]] = self._spawn(container)
        self.process = self._spawn(self.container)

    def probe(self, kind: str, sidecar: str = "") -> tuple[bool, str]:
        """One try of `startupProbe`, `readinessProbe` or `livenessProbe`: whether it succeeds, and what it says."""
        probe = self.manifest_of(sidecar)[kind]
        seconds = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return self._answer(self._enter(probe["exec"]["command"], sidecar), seconds)
        url = f"http://{self.address}:{self.port(probe['httpGet']['port'])}{probe['httpGet']['path']}"
        program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)"
        return self._answer(["ip", "netns", "exec", self.host, sys.executable, "-c", program, url], seconds)

    def until_started(self) -> float:
        """Probes as the start-up probe says; seconds until it succeeds. Fails when it never does."""
        probe, begun = self.container["startupProbe"], time.monotonic()
        limit = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        while time.monotonic() - begun < limit:
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            if self.probe("startupProbe")[0]:
                return time.monotonic() - begun
            time.sleep(0.2)
        raise AssertionError(f"{self.name} did not start in {limit} s:\n{self.said()}")

    def port(self, port: int | str) -> int:
        """The number of a port of any container, which may be given by its name."""
        containers = [*self.spec.get("initContainers", []), self.container]
        named = {one["name"]: one["containerPort"] for container in containers for one in container.get("ports", [])}
        return port if isinstance(port, int) else named[port]

    def manifest_of(self, sidecar: str = "") -> Object:
        """A sidecar's manifest, or the container's."""
        return next((c for c in self.spec.get("initContainers", []) if c["name"] == sidecar), self.container)

    def stop(self) -> tuple[int, float]:
        """preStop, SIGTERM to process 1, and SIGKILL when the grace period is over; then the same for each sidecar, the
        last one first. The first exit status that is not 0, and seconds it took."""
        assert self.process is not None
        begun, grace = time.monotonic(), float(self.spec.get("terminationGracePeriodSeconds", 30))
        hook: Object = self.container.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            time.sleep(min(hook["sleep"]["seconds"], grace))
        elif "exec" in hook:
            self._answer(self._enter(hook["exec"]["command"]), grace)
        statuses: list[int] = []
        for process in (self.process, *reversed(self.sidecars.values())):
            if process.poll() is None:
                os.kill(_first_process(process), signal.SIGTERM)
            try:
                statuses.append(process.wait(max(0.1, begun + grace - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append(process.wait())
        return next(filter(None, statuses), 0), time.monotonic() - begun

    def destroy(self) -> None:
        """For the end of a test, however it ended: the kernel ends a PID namespace with its first process."""
        for process in (self.process, *self.sidecars.values()):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def read(self, path: str, sidecar: str = "") -> str:
        """A file as the running container sees it."""
        return Path(f"/proc/{self._first_process(sidecar)}/root{path}").read_text()

    def run_inside(self, script: str, sidecar: str = "") -> str:
        """What a shell in the running container writes."""
        return self._answer(self._enter(["sh", "-c", script], sidecar), 10)[1]

    def _spawn(self, container: Object) -> "subprocess.Popen[bytes]":
        scratch = self.folder / f"root-{container['name']}"
        scratch.mkdir()
        started, says = os.pipe()
        settings = self._settings(container, scratch) | {"started": says}
        # Only the namespaces are made here; container.py goes on inside them.
        made = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        within = [sys.executable, "-I", "-S", str(CONTAINER), json.dumps(settings)]
        with self.log.open("ab") as log, open(started, "rb") as said:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.host, *made, *within],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[says],
                preexec_fn=die_with_parent,
            )
            os.close(says)
            assert said.read(1), self.said()
            return process

    def _settings(self, container: Object, scratch: Path) -> Object:
        security = self.security | container.get("securityContext", {})
        return {
            "scratch": str(scratch),
            "image": IMAGE,
            "mounts": [self._mount(mount) for mount in container.get("volumeMounts", [])],
            "files": {"/etc/hosts": str(self.folder / "hosts")},
            "hostname": self.name,
            "directory": container.get("workingDir", "/"),
            "command": [
                expand(word, self._environment(container))
                for word in [*container.get("command", []), *container.get("args", [])]
            ],
            "environment": self._environment(container),
            "user": security.get("runAsUser", 0),
            "group": security.get("runAsGroup", 0),
            "groups": [security["fsGroup"]] if "fsGroup" in security else [],
            "read_only_root": security.get("readOnlyRootFilesystem", False),
            "no_new_privileges": not security.get("allowPrivilegeEscalation", True),
            "drop_capabilities": "ALL" in security.get("capabilities", {}).get("drop", []),
        }

    def _mount(self, mount: Object) -> Object:
        volume, source = self.volumes[mount["name"]]
        never_written = "configMap" in volume or "secret" in volume
        claim_read_only = volume.get("persistentVolumeClaim", {}).get("readOnly", False)
        return {
            "source": None if source is None else str(source / mount.get("subPath", "")),
            "target": mount["mountPath"],
            "read_only": never_written or claim_read_only or mount.get("readOnly", False),
            "memory": _tmpfs_options(volume.get("emptyDir", {}), self.security.get("fsGroup")),
        }

    def _environment(self, container: Object) -> dict[str, str]:
        environment = {"PATH": IMAGE_PATH, "HOSTNAME": self.name} | dict(self.environment)
        for variable in container.get("env", []):
            if variable["name"] not in self.environment:
                environment[variable["name"]] = expand(variable["value"], environment)
        return environment

    def _enter(self, command: Sequence[str], sidecar: str = "") -> list[str]:
        """A command as it is run inside the running container, by a probe or a hook."""
        settings = self._settings(self.manifest_of(sidecar), self.folder)
        inside = ["nsenter", f"--target={self._first_process(sidecar)}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        inside += ["--root", "--wd", f"--setuid={settings['user']}", f"--setgid={settings['group']}", "--"]
        return [*inside, "env", "-i", *(f"{k}={v}" for k, v in settings["environment"].items()), *command]

    def _answer(self, command: Sequence[str], seconds: float) -> tuple[bool, str]:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False, f"no answer in {seconds} s"
        return done.returncode == 0, done.stdout + done.stderr

    def _first_process(self, sidecar: str = "") -> int:
        process = self.sidecars[sidecar] if sidecar else self.process
        assert process is not None
        return _first_process(process)


def _first_process(container: "subprocess.Popen[bytes]") -> int:
    """A container's process 1, by its number outside."""
    (child,) = psutil.Process(container.pid).children()
    return child.pid


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes expands it; one that is not known stays."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def _tmpfs_options(source: Object, group: int | None) -> str:
    owner = f"mode=2777,gid={group}" if group is not None else "mode=777"
    limit = re.fullmatch(r"(\d+)Mi", source.get("sizeLimit", ""))
    return f"{owner},size={limit[1]}m" if limit else owner
