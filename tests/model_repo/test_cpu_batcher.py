"""In-flight batching and sampling, on a tiny real model in one process."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batcher import Batcher, Output, Request
from hypothesis import given
from hypothesis import strategies as st
from llama import ShardedLlama
from mpi4py import MPI
from sampling import Sampler, SamplingParameters, log_probability

from runtime import cpu_engine
from tests import tiny_llama

SPEC = {"key": {"mapping": {"tensor_parallel": 1, "pipeline_parallel": 1}}}


@dataclass
class Stream:
    """What a request emitted."""

    outputs: list[Output] = field(default_factory=list[Output])
    done: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False

    def emit(self, output: Output) -> None:
        assert not self.done.is_set(), "emitted after the final output"
        self.outputs.append(output)
        if output.final or output.error:
            self.done.set()

    @property
    def tokens(self) -> list[int]:
        assert self.done.wait(60)
        return [token for output in self.outputs for token in output.tokens]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ShardedLlama:
    root = tmp_path_factory.mktemp("tiny")
    engine = root / "engine"
    engine.mkdir()
    cpu_engine.build(tiny_llama.write(root / "model"), SPEC, engine, lambda _: None)
    return ShardedLlama(Path(engine), MPI.COMM_SELF)


@pytest.fixture
def batcher(model: ShardedLlama) -> Iterator[Batcher]:
    made = make(model)
    yield made
    made.stop()


def make(model: ShardedLlama, **changes: Any) -> Batcher:
    failures: list[Exception] = []
    settings = {"max_batch_size": 4, "max_queue_size": 8, "kv_cache_tokens": 1024, "max_seq_len": 200} | changes
    return Batcher(model, **settings, on_failure=failures.append)


def submit(batcher: Batcher, prompt: list[int], max_tokens: int = 12, **options: Any) -> Stream:
    stream = Stream()
    sampling = options.pop("sampling", SamplingParameters())
    refusal = batcher.submit(
        Request(
            id=options.pop("id", "x"),
            prompt=np.array(prompt, np.int32),
            max_tokens=max_tokens,
            sampling=sampling,
            emit=stream.emit,
            is_cancelled=lambda: stream.cancelled,
            **options,
        )
    )
    assert refusal is None, refusal
    return stream


def test_a_request_gets_the_same_tokens_whatever_runs_beside_it(batcher: Batcher) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": [5, 6, 7], "max_tokens": 30},
        {"prompt": list(range(1, 100)), "max_tokens": 10},
        {"prompt": [9], "max_tokens": 50, "sampling": SamplingParameters(top_k=20, temperature=1.5, seed=3)},
        {"prompt": [9], "max_tokens": 50, "sampling": SamplingParameters(top_p=0.9, temperature=1.5, seed=4)},
        {"prompt": [33, 44], "max_tokens": 25, "sampling": SamplingParameters(repetition_penalty=1.5)},
        {"prompt": [70] * 65, "max_tokens": 3},
    ]
    alone = [submit(batcher, **request).tokens for request in requests]
    together = [stream.tokens for stream in [submit(batcher, **request) for request in requests]]

    assert together == alone
    assert [len(tokens) for tokens in alone] == [request["max_tokens"] for request in requests]


def test_streaming_emits_each_token_once_and_in_order(batcher: Batcher) -> None:
    whole, streamed = submit(batcher, [4, 8], 20), submit(batcher, [4, 8], 20, streaming=True)

    assert streamed.tokens == whole.tokens
    assert [len(output.tokens) for output in streamed.outputs] == [1] * 20
    assert [output.generated for output in streamed.outputs] == list(range(1, 21))
    assert len(whole.outputs) == 1


def test_the_end_token_ends_and_is_not_emitted(batcher: Batcher) -> None:
    tokens = submit(batcher, [4, 8], 20).tokens
    end_id = tokens[7]
    cut = tokens[: tokens.index(end_id)]

    assert submit(batcher, [4, 8], 20, sampling=SamplingParameters(end_id=end_id)).tokens == cut
    assert submit(batcher, [4, 8], 20, streaming=True, sampling=SamplingParameters(end_id=end_id)).tokens == cut
    kept_on = submit(batcher, [4, 8], 20, sampling=SamplingParameters(end_id=end_id, min_tokens=15)).tokens
    assert len(kept_on) >= 15
    assert end_id not in kept_on[:15]


def test_a_stop_word_ends_and_is_emitted(batcher: Batcher) -> None:
    tokens = submit(batcher, [4, 8], 20).tokens

    assert submit(batcher, [4, 8], 20, stop_words=[tokens[3:5], [9999]]).tokens == tokens[:5]


def test_log_probabilities_are_the_models_own(batcher: Batcher) -> None:
    stream = submit(batcher, [4, 8], 6, wants_log_probs=True)

    assert len(stream.tokens) == len(stream.outputs[0].log_probs) == 6
    assert all(-10 < value <= 0 for value in stream.outputs[0].log_probs)
    streamed = submit(batcher, [4, 8], 6, wants_log_probs=True, streaming=True)
    assert streamed.tokens == stream.tokens
    assert streamed.outputs[-1].cum_log_prob == pytest.approx(sum(stream.outputs[0].log_probs))
    assert [output.log_probs for output in streamed.outputs] == [[value] for value in stream.outputs[0].log_probs]
    unasked = submit(batcher, [4, 8], 6)
    assert unasked.tokens == stream.tokens
    assert unasked.outputs[0].log_probs == []


@pytest.mark.parametrize("by_id", [True, False])
def test_cancelling_frees_the_slot_and_its_blocks(model: ShardedLlama, by_id: bool) -> None:
    batcher = make(model, max_batch_size=1)
    try:
        running = submit(batcher, [4], 190, id="long", streaming=True)
        waiting = submit(batcher, [5], 3)
        while not running.outputs:
            time.sleep(0.001)
        if by_id:
            batcher.cancel("long")
        else:
            running.cancelled = True
        assert len(running.tokens) < 190
        assert len(waiting.tokens) == 3
        assert batcher.gauges()["kv_cache_block", "used"] == 0
        assert batcher.gauges()["request", "active"] == 0
    finally:
        batcher.stop()


def test_requests_wait_while_the_cache_is_full_and_none_is_evicted(model: ShardedLlama) -> None:
    batcher = make(model, kv_cache_tokens=64)
    try:
        streams = [submit(batcher, [7], 40) for _ in range(3)]
        most = 0.0
        while not all(stream.done.is_set() for stream in streams):
            most = max(most, batcher.gauges()["request", "scheduled"])
        assert most == 1
        assert len({tuple(stream.tokens) for stream in streams}) == 1
    finally:
        batcher.stop()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "words"),
    [
        ([], 5, "empty"),
        ([1], 0, "at least one"),
        ([1] * 150, 60, "max_seq_len"),
        ([101], 5, "another tokenizer"),
        ([-1], 5, "another tokenizer"),
    ],
)
def test_an_impossible_request_is_refused_in_words(
    batcher: Batcher, prompt: list[int], max_tokens: int, words: str
) -> None:
    with pytest.raises(AssertionError, match=words):
        submit(batcher, prompt, max_tokens)
    assert len(submit(batcher, [5], 2).tokens) == 2


def test_a_full_queue_refuses_and_a_request_larger_than_the_pool_too(model: ShardedLlama) -> None:
    batcher = make(model, max_batch_size=1, max_queue_size=2, kv_cache_tokens=128)
    try:
        with pytest.raises(AssertionError, match="KV cache blocks"):
            submit(batcher, [1], 150)
        for _ in range(3):
            submit(batcher, [1], 100)
            while batcher.gauges()["request", "scheduled"] == 0:  # the first leaves the queue at once
                time.sleep(0.001)
        with pytest.raises(AssertionError, match="queue is full"):
            submit(batcher, [1], 100)
    finally:
        batcher.stop()


def test_an_engine_failure_answers_every_request(model: ShardedLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    batcher = Batcher(
        model,
        max_batch_size=1,
        max_queue_size=8,
        kv_cache_tokens=1024,
        max_seq_len=200,
        on_failure=lambda _: failed.set(),
    )

    def broken(_: object) -> list[Any]:
        raise RuntimeError("lost a rank")

    monkeypatch.setattr(model, "run", broken)
    stream = Stream()
    request = Request(
        id="1",
        prompt=np.array([1], np.int32),
        max_tokens=5,
        sampling=SamplingParameters(),
        emit=stream.emit,
        is_cancelled=lambda: False,
    )
    assert batcher.submit(request) is None
    assert failed.wait(10)
    assert stream.outputs[-1].error
    assert "send the request again" in stream.outputs[-1].error


def sampler(**parameters: Any) -> Sampler:
    return Sampler(SamplingParameters(**parameters), np.array([0], np.int32))


LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)


def test_greedy_is_the_default_and_ignores_the_seed() -> None:
    assert {sampler(seed=seed).draw(LOGITS) for seed in range(5)} == {1}
    assert sampler(temperature=0, top_k=50).draw(LOGITS) == 1


def test_top_k_and_top_p_draw_only_from_the_tops_and_in_proportion() -> None:
    drawing = sampler(top_k=2, seed=5)
    drawn = [drawing.draw(LOGITS) for _ in range(2000)]
    assert set(drawn) == {1, 4}
    expected = 1 / (1 + np.exp(-0.5))
    assert abs(drawn.count(1) / 2000 - expected) < 0.04
    # Probabilities are about .46, .28, .17, .06, .01: two reach 0.7, the third is needed for 0.8.
    two, three = sampler(top_p=0.7, seed=5), sampler(top_p=0.8, seed=5)
    assert {two.draw(LOGITS) for _ in range(500)} == {1, 4}
    assert {three.draw(LOGITS) for _ in range(500)} == {1, 4, 2}


def test_penalties_bad_words_and_logits_left_alone() -> None:
    before = LOGITS.copy()
    penalised = sampler(repetition_penalty=2.0)
    assert [penalised.draw(LOGITS) for _ in range(3)] == [1, 4, 2]
    assert [sampler(presence_penalty=5.0).draw(LOGITS)] == [1]
    frequent = sampler(frequency_penalty=0.4)
    assert [frequent.draw(LOGITS) for _ in range(3)] == [1, 1, 4]
    banned = sampler(bad_words=((1, 4), (2,)), presence_penalty=10.0)
    assert [banned.draw(LOGITS) for _ in range(2)] == [1, 0]
    assert (before == LOGITS).all()


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.integers(0, 50), st.floats(0, 1))
def test_any_draw_is_a_token_and_log_probabilities_sum_to_one(values: list[float], top_k: int, top_p: float) -> None:
    logits = np.array(values, np.float32)
    token = sampler(top_k=top_k, top_p=top_p, temperature=0.7).draw(logits)

    assert 0 <= token < len(values)
    total = sum(np.exp(log_probability(logits, i)) for i in range(len(values)))
    assert abs(total - 1) < 1e-6
