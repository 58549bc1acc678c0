"""What the serving component makes for one model of two hosts on the CPU backend, and its pods as they come to be.

The stack is aws-llama-405b with another model: its pool, storage, images and security settings are those of the real
one. LeaderWorkerSet's controller is imitated as its v0.10 works: pod names, labels and variables.
"""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save  # pyright: ignore[reportUnknownVariableType] - untyped arrays

from components.serving.keys import keys_file
from planner.config import ModelConfig
from planner.plan import FleetPlan, ModelPlan, plan_model
from runtime.checkpoint import read_checkpoint
from tests.components.serving.stacks import LARGE, planned, served
from tests.components.world import Recorded
from tests.hub import COMMIT
from tests.kubelet.volumes import Object, Objects

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHARDS = 2
API_KEY = "sk-a-key-that-pulumi-made-for-the-stack"
# Times that a laptop needs instead of a cluster: seconds for endpoints to forget a pod, and for requests in flight.
PRESTOP_SECONDS, DRAIN_SECONDS, GRACE_SECONDS = 1, 20, 40


@dataclass(frozen=True)
class Deployed:
    """The manifests of one model."""

    plan: ModelPlan
    namespace: str
    environment: Object
    fetch: Object
    build: Object
    set: Object
    service: Object
    objects: Objects

    def leader_and_worker(self) -> tuple[Object, Object]:
        """The pods of group 0, as LeaderWorkerSet's controller and its webhook make them from the templates."""
        template = self.set["spec"]["leaderWorkerTemplate"]
        return self._member(template["leaderTemplate"], 0), self._member(template["workerTemplate"], 1)

    @property
    def variables(self) -> tuple[dict[str, str], dict[str, str]]:
        """LeaderWorkerSet's environment of the leader and the worker."""
        name, size = self.set["metadata"]["name"], str(self.set["spec"]["leaderWorkerTemplate"]["size"])
        address = {"LWS_LEADER_ADDRESS": f"{name}-0.{name}.{self.namespace}", "LWS_GROUP_SIZE": size}
        return address | {"LWS_WORKER_INDEX": "0"}, address | {"LWS_WORKER_INDEX": "1"}

    def _member(self, template: Object, index: int) -> Object:
        name = self.set["metadata"]["name"]
        labels = {"name": name, "group-index": "0", "worker-index": str(index)}
        labels = {f"leaderworkerset.sigs.k8s.io/{key}": value for key, value in labels.items()}
        metadata = {"name": f"{name}-0" + (f"-{index}" if index else ""), "namespace": self.namespace}
        return {"metadata": metadata | {"labels": template["metadata"]["labels"] | labels}, "spec": template["spec"]}


def deploy(config: Path, claims: Mapping[str, Path], hub_token: str) -> Deployed:
    """Renders the model whose config.json is `config`; `claims` are the folders behind the claims of the pods."""
    fleet = planned(LARGE)
    large = fleet.models[0].serving
    assert large is not None
    model = plan_model(
        ModelConfig(
            name="smollm2",
            source=f"hf://{REPOSITORY}",
            revision=COMMIT,
            config=str(config),
            backend="cpu",
            pipeline_parallel=2,
            max_seq_len=1024,
        ),
        base_dir=Path("/"),
        key="models[0]",
    )
    serving = dataclasses.replace(
        large,
        prestop_seconds=PRESTOP_SECONDS,
        drain_seconds=DRAIN_SECONDS,
        grace_seconds=GRACE_SECONDS,
    )
    model = dataclasses.replace(model, nodes=2, ranks_per_node=1, serving=serving)
    recorded = served(FleetPlan(cloud=fleet.cloud, models=(model,), infrastructure=fleet.infrastructure))
    return Deployed(
        plan=model,
        namespace="tritonfleet",
        environment=recorded.one("Job", "-environment-").inputs,
        fetch=recorded.one("Job", "-weights-").inputs,
        build=recorded.one("Job", "-engine-").inputs,
        set=recorded.one("LeaderWorkerSet").inputs,
        service=recorded.one("Service").inputs,
        objects=Objects(_by_name(recorded, "ConfigMap"), _secrets(recorded, hub_token), claims),
    )


def smollm2_repository(gguf: Path) -> dict[str, bytes]:
    """The real model as the Hub has it: a folder's files, with weights in half precision and what no build reads."""
    checkpoint = read_checkpoint(gguf)
    layers = range(int(checkpoint.config["num_hidden_layers"]))
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names = [f"model.layers.{layer}.{part}.weight" for layer in layers for part in parts]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    files: dict[str, bytes] = {
        "config.json": json.dumps(checkpoint.config).encode(),
        "tokenizer.json": checkpoint.tokenizer.encode(),
        "tokenizer_config.json": json.dumps(checkpoint.tokenizer_config).encode(),
        "README.md": b"# SmolLM2",
        "pytorch_model.bin": b"a pickle",
        "onnx/model.safetensors": b"the same again",
    }
    for shard in range(SHARDS):
        path = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        files[path] = save({name: checkpoint.tensor(name).astype("float16") for name in names[shard::SHARDS]})
    return files


def _by_name(recorded: Recorded, kind: str) -> dict[str, Object]:
    return {found.inputs["metadata"]["name"]: found.inputs for found in recorded.of(kind)}


def _secrets(recorded: Recorded, hub_token: str) -> dict[str, Object]:
    """The Secrets, with the values that Pulumi's engine puts in place of promises."""
    found = _by_name(recorded, "Secret")
    length = recorded.one("RandomPassword", "-token").inputs["length"]
    found["smollm2-rendezvous"]["stringData"]["token"] = secrets.token_hex(length)[:length]
    found["hugging-face-token"]["stringData"]["token"] = hub_token
    found["api-keys"]["stringData"]["keys.json"] = keys_file({"default": API_KEY}, {})
    return found
