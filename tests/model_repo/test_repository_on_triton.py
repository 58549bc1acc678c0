"""The rendered repository on a real Triton, over a scripted engine that echoes the prompt's tokens."""

# pyright: basic
import re
import threading
import time
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from model_repo.render import render, write
from tests.model_repo.conftest import Engine
from tests.model_repo.triton_process import TritonProcess, requests_seen, text_of

SCRIPTED = Path(__file__).with_name("scripted_engine.py")
TEXT = "hello 🙂 naïve 漢字 👩‍👩‍👧 end"


def scripted_repository(plan, engine_dir: Path, out: Path) -> Path:
    files = {
        name: content
        for name, content in render(plan, str(engine_dir)).items()
        if not name.startswith("tensorrt_llm/1/")
    }
    write(files | {"tensorrt_llm/1/model.py": SCRIPTED.read_bytes()}, out)
    return out


@pytest.fixture(scope="module")
def server(plan_of, engine_dir, triton_cache, tmp_path_factory):
    plan = plan_of("cpu", max_batch_size=4, max_seq_len=256, serving={"max_queue_size": 60})
    repository = scripted_repository(plan, engine_dir, tmp_path_factory.mktemp("triton") / "repository")
    process = TritonProcess(repository, triton_cache)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_answers_whole_when_not_streamed(server, model):
    responses = server.ask(model, TEXT, stream=False)
    assert [r["text_output"].tolist() for r in responses] == [[[TEXT.encode()]]]


def test_streams_no_split_character(server):
    pieces = [r["text_output"].item().decode() for r in server.ask("tensorrt_llm_bls", TEXT)]
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 10


def test_character_cut_by_max_tokens_is_left_out(server):
    # "hi", space and first byte of the emoji in one token, second byte; <|bos|> is the first token of the prompt
    for stream in (True, False):
        responses = server.ask("tensorrt_llm_bls", "hi 🙂", max_tokens=5, stream=stream, return_num_output_tokens=True)
        assert text_of(responses) == "hi "
        assert responses[-1]["num_output_tokens"].item() == 5


def test_ensemble_streams_each_token_in_order(server):
    text = "streamed in order, token by token"
    responses = server.ask("ensemble", text)
    assert text_of(responses) == text
    assert len(responses) > len(text) // 2


def test_special_tokens_are_parsed_and_bos_is_not_doubled(server):
    before = len(requests_seen(server))
    server.ask("tensorrt_llm_bls", "<|im_start|>a", return_num_input_tokens=True)
    server.ask("tensorrt_llm_bls", "<|bos|><|im_start|>a")
    first, second = [line["input_ids"] for line in requests_seen(server)[before:] if "input_ids" in line]
    assert first == second
    assert len(first[0]) == 3


def test_sampling_parameters_reach_the_engine(server):
    given = {"top_k": 7, "top_p": 0.5, "temperature": 0.25, "repetition_penalty": 1.5, "seed": 2**63, "end_id": 9}
    expected = {"runtime_top_k": 7, "runtime_top_p": 0.5, "temperature": 0.25, "repetition_penalty": 1.5}
    for model in ("ensemble", "tensorrt_llm_bls"):
        before = len(requests_seen(server))
        server.ask(model, "a", **given)
        seen = requests_seen(server)[before]
        assert {name: seen[name] for name in expected} == {name: [value] for name, value in expected.items()}, model
        assert (seen["seed"], seen["end_id"], seen["streaming"]) == ([2**63], [9], [True]), model


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_word_lists_have_upstreams_layout(server, model, tokenizer_file):
    before = len(requests_seen(server))
    server.ask(model, "x", stop_words=["STOP", "", "h"], bad_words=["é"])
    seen = requests_seen(server)[before]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    ids = {word: tokenizer.encode(word, add_special_tokens=False).ids for word in ("STOP", "h", "é")}
    assert seen["stop_words_list"] == [[[*ids["STOP"], *ids["h"]], [4, 5, -1, -1, -1]]]
    assert seen["bad_words_list"] == [[ids["é"], [2, -1]]]


@pytest.mark.parametrize("stream", [True, False])
def test_stop_word_in_the_text_ends_the_answer_and_the_engine(server, stream):
    before = len(requests_seen(server))
    # "hello" is one more token than its letters would be alone: "he" is merged.
    answer = text_of(
        server.ask("tensorrt_llm_bls", "abc hello" + "z" * 100, stop_words=["ello"], min_tokens=10, stream=stream)
    )
    assert answer == "abc hello"
    seen = requests_seen(server)[before:]
    assert seen[-1]["stopped"]
    assert [line["id"] for line in seen if line.get("stop")] == [seen[0]["id"]]


def test_prompt_is_put_before_the_answer_only_where_asked(server):
    assert text_of(server.ask("tensorrt_llm_bls", "ab", stream=False, exclude_input_in_output=False)) == "abab"
    assert text_of(server.ask("tensorrt_llm_bls", "ab", stream=False)) == "ab"


def test_token_counts(server):
    responses = server.ask("tensorrt_llm_bls", "abc", return_num_input_tokens=True, return_num_output_tokens=True)
    assert [r["num_output_tokens"].item() for r in responses] == [1, 2, 3, 4]
    assert {r["num_input_tokens"].item() for r in responses} == {4}


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        (b"\xff\xfe", {}, "not valid UTF-8"),
        ("x" * 300, {}, "the prompt has 301 tokens and the context 256.*to 255 tokens"),
        ("x", {"max_tokens": 0}, "max_tokens is 0"),
        ("x", {"stop_words": [b"\xff"]}, "stop_words is not valid UTF-8"),
    ],
)
def test_bad_request_gets_one_clear_error(server, model, text, inputs, message):
    with pytest.raises(InferenceServerException, match=message) as error:
        server.ask(model, text, **inputs)
    assert "Traceback" not in str(error.value)
    assert text_of(server.ask(model, "still here")) == "still here"


def test_answer_is_shortened_to_the_context(server):
    before = len(requests_seen(server))
    server.ask("tensorrt_llm_bls", "x" * 200, stream=False)
    assert requests_seen(server)[before]["request_output_len"] == [256 - 201]


def engine_end(server, before: int) -> list[dict]:
    """What the engine saw since, once its request has ended."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and "ended" not in (requests_seen(server)[before:] or [{}])[-1]:
        time.sleep(0.02)
    return requests_seen(server)[before:]


@pytest.mark.parametrize("streams", [True, False])
def test_client_that_leaves_frees_the_engine(server, streams):
    before = len(requests_seen(server))
    with server.stream("tensorrt_llm_bls", "a" * 200, min_tokens=20, stream=streams):
        time.sleep(0.4)
        left = time.time()
    seen = engine_end(server, before)
    assert seen[-1]["stopped"]
    assert [line["id"] for line in seen if line.get("stop")] == [seen[0]["id"]]
    print(f"\nengine freed {1000 * (seen[-1]['ended'] - left):.0f} ms after the client left")
    assert seen[-1]["ended"] - left < 1


def run_all(server, count: int, text: str, **inputs) -> list[BaseException | str]:
    """That many requests at once; each one's text, or its error."""
    outcomes: list[BaseException | str] = []

    def ask() -> None:
        try:
            outcomes.append(text_of(server.ask("tensorrt_llm_bls", text, **inputs)))
        except InferenceServerException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_cancelled_while_queued_never_reaches_the_engine(server):
    """Four requests fill the instances; one that waits behind them is cancelled."""
    before = len(requests_seen(server))
    crowd = threading.Thread(target=run_all, args=(server, 8, "bb"), kwargs={"min_tokens": 300})
    crowd.start()
    time.sleep(0.3)
    with server.stream("tensorrt_llm_bls", "ccccc", min_tokens=100):
        time.sleep(0.3)
    crowd.join()
    assert text_of(server.ask("tensorrt_llm_bls", "d")) == "d"
    prompts = [len(line["input_ids"][0]) for line in requests_seen(server)[before:] if "input_ids" in line]
    assert sorted(prompts) == [2] + [3] * 8


def test_requests_over_the_queue_are_refused(server):
    """Four requests hold the instances for longer than the others need to arrive."""
    crowd = threading.Thread(target=run_all, args=(server, 4, "bb"), kwargs={"min_tokens": 3000})
    crowd.start()
    time.sleep(1)
    outcomes = run_all(server, 80, "q")
    crowd.join()
    refused = [error for error in outcomes if isinstance(error, InferenceServerException)]
    # 60 wait; each of the 4 instances may hold one more that Triton has handed to it already.
    assert 60 <= outcomes.count("q") <= 64
    assert len(refused) == 80 - outcomes.count("q")
    assert all("maximum queue size" in str(error) for error in refused)


def test_concurrent_streams_do_not_mix(server):
    texts = [f"{n}: {TEXT}" * 2 for n in range(32)]
    answers: dict[str, str] = {}

    def ask(text: str) -> None:
        answers[text] = text_of(server.ask("tensorrt_llm_bls", text))

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n32 streams in {time.monotonic() - start:.1f} s")
    assert answers == {text: text for text in texts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 200}, r"tokenizer\.json has token ids up to 260, the engine in .* only 200 tokens"),
        ({"special": {}}, r"tokenizer_config\.json names no eos_token"),
        ({"remove": "tokenizer.json"}, r"tokenizer\.json cannot be read"),
        ({"remove": "tokenizer_config.json"}, r"tokenizer_config\.json cannot be read"),
    ],
)
def test_wrong_tokenizer_is_refused_at_start_in_one_line(
    plan_of, tokenizer_file, start_triton, tmp_path, change, message
):
    engine = Engine(tmp_path / "engine", **{name: value for name, value in change.items() if name != "remove"})
    path = engine.create(tokenizer_file)
    if "remove" in change:
        (path / "tokenizer" / change["remove"]).unlink()
    log = start_triton(scripted_repository(plan_of("cpu"), path, tmp_path / "repository")).wait_exit()
    lines = [line for line in log.splitlines() if re.search(message + ".*; build the engine again", line)]
    assert lines
    assert "Traceback" not in log
