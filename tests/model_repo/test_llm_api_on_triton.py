"""The pytorch backend's repository on a real Triton, over a stand-in for the image's LLM API model."""

# pyright: basic
import json
import time
from pathlib import Path

import httpx2
import pytest
from tritonclient.utils import InferenceServerException

from model_repo.render import render, write
from tests.frontend.serving import FrontendProcess
from tests.model_repo.triton_process import TritonProcess, requests_seen, text_of

FAKE = Path(__file__).with_name("fake_llm_api.py")
TEXT = "hello 🙂 漢字"


@pytest.fixture(scope="module")
def server(plan_of, engine_dir, triton_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm_api")
    arguments = {"model": "/ckpt", "tensor_parallel_size": 1, "kv_cache_config": {"dtype": "auto"}}
    (engine_dir / "llm_args.yaml").write_text(json.dumps(arguments))
    image = folder / "image"
    image.mkdir()
    (image / "model.py").write_bytes(FAKE.read_bytes())
    (image / "helpers.py").write_text("def encode(text):\n    return text.encode()\n")
    plan = plan_of("pytorch", max_batch_size=2, serving={"kv_cache_free_gpu_mem_fraction": 0.8})
    files = render(plan, str(engine_dir))
    model = files["tensorrt_llm/1/model.py"].decode()
    replaced = model.replace("/app/all_models/llmapi/tensorrt_llm/1/model.py", str(image / "model.py"))
    assert replaced != model
    write(files | {"tensorrt_llm/1/model.py": replaced.encode()}, folder / "repository")
    process = TritonProcess(folder / "repository", triton_cache)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def test_arguments_are_the_engines_with_serving_on_top(server):
    assert requests_seen(server)[0]["arguments"] == {
        "model": "/ckpt",
        "tensor_parallel_size": 1,
        "kv_cache_config": {"dtype": "auto", "free_gpu_memory_fraction": 0.8, "enable_block_reuse": True},
        "enable_chunked_prefill": True,
        "scheduler_config": {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"},
        "triton_config": {"max_batch_size": 0, "decoupled": True, "cancellation_check_period_ms": 100},
    }


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("stream", [True, False])
def test_client_interface_is_the_engines(server, model, stream):
    responses = server.ask(model, TEXT, stream=stream, temperature=0.5, seed=3, stop_words=["X", "Y"])
    assert text_of(responses) == TEXT
    assert len(responses) == (len(TEXT) if stream else 1)
    seen = requests_seen(server)[-1]
    assert seen["sampling_param_temperature"] == ["0.5"]
    assert seen["sampling_param_stop"] == ["b'X'", "b'Y'"]
    assert seen["sampling_param_seed"] == ["3"]


def test_counts(server):
    (response,) = server.ask(
        "tensorrt_llm_bls", "abc", stream=False, return_num_input_tokens=True, return_num_output_tokens=True
    )
    assert (response["num_input_tokens"].item(), response["num_output_tokens"].item()) == (4, 3)


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("a", {"repetition_penalty": 1.5}, "repetition_penalty is not supported by the pytorch backend"),
        ("a", {"end_id": 0}, "end_id is not supported"),
        ("", {}, "the prompt is empty"),
        (b"\xff", {}, "not valid UTF-8"),
    ],
)
def test_what_the_llm_api_cannot_do_is_refused(server, text, inputs, message):
    with pytest.raises(InferenceServerException, match=message):
        server.ask("tensorrt_llm_bls", text, **inputs)


def test_neutral_values_are_accepted(server):
    assert text_of(server.ask("tensorrt_llm_bls", "a", repetition_penalty=1.0, beam_width=1, min_tokens=0)) == "a"


def test_client_that_leaves_stops_the_llm_api(server):
    with server.stream("tensorrt_llm_bls", "a" * 200, top_k=20):
        time.sleep(0.4)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and "ended" not in requests_seen(server)[-1]:
        time.sleep(0.05)
    assert requests_seen(server)[-1] == {"ended": "stopped"}


@pytest.fixture(scope="module")
def frontend(server, engine_dir):
    process = FrontendProcess(
        server.ports[1], engine_dir / "tokenizer", "--engine-model=tensorrt_llm_bls", "--text", "--max-sequences=8"
    )
    yield process
    output = process.stop()
    assert "Traceback" not in output, output


def completion(frontend, **asked):
    return httpx2.post(f"{frontend.url}/v1/completions", json={"model": "smollm2", **asked}, timeout=30)


def test_the_frontend_serves_it(server, frontend):
    answer = completion(frontend, prompt=f"<|bos|>{TEXT}", max_tokens=100, temperature=0, seed=3).json()

    assert answer["choices"][0]["text"] == TEXT
    # The tokenizer that the LLM API has adds the BOS that the prompt has too.
    assert requests_seen(server)[-1]["text_input"] == [str(TEXT.encode())]
    assert requests_seen(server)[-1]["sampling_param_top_k"] == ["1"]
    # It came letter by letter, and neither of the two pairs that are one token came whole.
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (1 + 15, 15 + 2)


def test_what_it_cannot_do_is_the_clients_fault(frontend):
    answer = completion(frontend, prompt="a", repetition_penalty=1.5)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "repetition_penalty", "unsupported_parameter")
    assert completion(frontend, prompt="a").status_code == 200
