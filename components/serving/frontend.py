"""The OpenAI-compatible frontend beside the leader's Triton (docs/adr/010-frontend-beside-the-leader.md)."""

import math
from dataclasses import dataclass

from pulumi_kubernetes.core.v1 import (
    ContainerArgs,
    ContainerPortArgs,
    HTTPGetActionArgs,
    ProbeArgs,
    ResourceRequirementsArgs,
    VolumeMountArgs,
)

from components.serving import environment, keys, pods
from components.serving.common import Common
from components.serving.config_maps import Files
from planner.endpoints import OPENAI_PORT, PORTS
from planner.fleet import ServingPlan
from planner.plan import ModelPlan

NAME = "frontend"

_UNREADY_SECONDS, _PERIOD_SECONDS = 15, 5
# Its turn to end comes after Triton's, when no answer can grow any more: for what clients have not yet read.
_DRAIN_SECONDS = 1
_DISK_MIB = 64


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """Of one model; `engine` is its engine's folder as the pod sees it, and `code` the package."""

    model: ModelPlan
    serving: ServingPlan
    common: Common
    code: Files
    engine: str

    def parts(self) -> list[pods.Mounted]:
        """The volumes that the leader does not have."""
        return [pods.package(NAME, self.code), pods.secret("api-keys", keys.SECRET, keys.FOLDER)]

    def container(self) -> ContainerArgs:
        """An init container that goes on: the kubelet ends it after Triton."""
        of_leader = {"shared": pods.SHARED, "run": pods.RUN}
        mounts = pods.mounts(self.parts())
        mounts += [VolumeMountArgs(name=name, mount_path=path, read_only=True) for name, path in of_leader.items()]
        return ContainerArgs(
            name=NAME,
            image=self.common.python_image,
            image_pull_policy="Always",
            command=self._command(),
            working_dir=pods.ROOT,
            restart_policy="Always",
            env=pods.environment(environment.variables()),
            ports=[ContainerPortArgs(name=OPENAI_PORT, container_port=PORTS[OPENAI_PORT])],
            # Neither start-up nor liveness: the kubelet would restart the container, which ends the whole group.
            # frontend.keep asks the same, and restarts the process.
            readiness_probe=ProbeArgs(
                http_get=HTTPGetActionArgs(path="/readyz", port=OPENAI_PORT),
                period_seconds=_PERIOD_SECONDS,
                timeout_seconds=_PERIOD_SECONDS,
                failure_threshold=math.ceil(_UNREADY_SECONDS / _PERIOD_SECONDS),
            ),
            resources=self._resources(),
            security_context=pods.container_security(),
            volume_mounts=mounts,
        )

    def _command(self) -> list[str]:
        config = self.model.config
        options = {
            "--grpc": f"127.0.0.1:{PORTS['grpc']}",
            "--host": "0.0.0.0",
            "--port": str(PORTS[OPENAI_PORT]),
            "--model": self.model.name,
            "--tokenizer": f"{self.engine}/tokenizer",
            "--max-seq-len": str(config.max_seq_len),
            "--max-sequences": str(config.max_sequences),
            "--api-keys": f"{keys.FOLDER}/{keys.FILE}",
            "--state": f"{pods.RUN}/state.json",
            "--drain-seconds": str(_DRAIN_SECONDS),
        }
        command = ["python3", "-m", "frontend.keep", *(word for option in options.items() for word in option)]
        # The LLM API takes no token ids over Triton, only text.
        return [*command, "--engine-model", "tensorrt_llm_bls", "--text"] if config.backend == "pytorch" else command

    def _resources(self) -> ResourceRequirementsArgs:
        exact = {
            "memory": pods.mebibytes(self.serving.frontend_memory_mib),
            "ephemeral-storage": pods.mebibytes(_DISK_MIB),
        }
        requests = {"cpu": pods.cores(self.serving.frontend_cpu_millis)} | exact
        return ResourceRequirementsArgs(requests=requests, limits=exact)
