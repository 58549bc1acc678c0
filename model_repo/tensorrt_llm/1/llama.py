"""One rank of a Llama-family forward pass in numpy, sharded by tensor and pipeline parallelism over MPI.

A step carries segments of several requests at once (prefill chunks beside single decode tokens). Every product with a
weight is taken segment by segment, so its shape, and with it every rounding, depends on that request alone; partial
sums of the tensor-parallel ranks are gathered and added in rank order, never reduced in an order that MPI picks by
message size. That is what makes a request's answer the same to the last bit whatever runs beside it, and costs little:
at the batch sizes of a laptop the weights stay in cache from one segment to the next.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType] - untyped arrays

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one request: `tokens` int32 [n] stand at positions start .. start+n-1."""

    slot: int
    tokens: npt.NDArray[np.int32]
    start: int
    wants_logits: bool


@dataclass(frozen=True)
class Step:
    """What all ranks do next: open and close KV caches (slot, capacity in tokens), then run the segments."""

    opened: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    closed: list[int] = field(default_factory=list[int])
    segments: list[Segment] = field(default_factory=list[Segment])


class ShardedLlama:
    """This process's rank of an engine directory built for `comm.size` ranks."""

    def __init__(self, engine: Path, comm: MPI.Intracomm) -> None:
        self.comm = comm
        config = json.loads((engine / "config.json").read_text(encoding="utf-8"))["pretrained_config"]
        mapping = config["mapping"]
        if mapping["world_size"] != comm.size:
            raise ValueError(f"the engine is built for {mapping['world_size']} ranks, the MPI world has {comm.size}")
        self.tp, self.pp = int(mapping["tp_size"]), int(mapping["pp_size"])
        self.stage, self.part = divmod(comm.rank, self.tp)
        self.tp_comm = comm.Split(self.stage, self.part)
        self.vocab_size, self.hidden = int(config["vocab_size"]), int(config["hidden_size"])
        self.head_size, self.epsilon = int(config["head_size"]), float(config["norm_epsilon"])
        self.max_positions = int(config["max_position_embeddings"])
        self.heads = int(config["num_attention_heads"]) // self.tp
        self.kv_heads = max(1, int(config["num_key_value_heads"]) // self.tp)
        self.cos, self.sin = _rotary(self.head_size, self.max_positions, float(config["rotary_base"]))
        self._load(cast("dict[str, Array]", load_file(engine / f"rank{comm.rank}.safetensors")))
        self.caches: dict[int, Array] = {}

    def _load(self, tensors: dict[str, Array]) -> None:
        names = ["attention.qkv", "attention.dense", "mlp.gate_up", "mlp.proj", "input_layernorm", "post_layernorm"]
        held = sorted(int(name.split(".")[2]) for name in tensors if name.endswith("attention.qkv.weight"))
        self.layers = [[tensors[f"transformer.layers.{i}.{name}.weight"] for name in names] for i in held]
        self.embedding = tensors.get("transformer.vocab_embedding.weight")
        self.final_norm = tensors.get("transformer.ln_f.weight")
        self.head = tensors.get("lm_head.weight", self.embedding) if self.final_norm is not None else None

    def run(self, step: Step) -> list[Array]:
        """On rank 0: start `step` on every rank and return the logits [vocab] of each segment that wants them."""
        for rank in range(1, self.comm.size):
            self.comm.send(step, dest=rank)
        local = self._forward(step)
        wanted = sum(segment.wants_logits for segment in step.segments)
        last = (self.pp - 1) * self.tp
        if wanted and last:
            local = np.empty((wanted, self.vocab_size), np.float32)
            _wait_for(self.comm, last)
            self.comm.Recv(local, source=last)
        return list(local) if local is not None else []

    def follow(self) -> None:
        """On every other rank: run the steps rank 0 sends until it sends none."""
        while True:
            _wait_for(self.comm, 0)
            step = cast("Step | None", self.comm.recv(source=0))
            if step is None:
                return
            logits = self._forward(step)
            if logits is not None and self.part == 0:
                self.comm.Send(logits, dest=0)

    def stop(self) -> None:
        """On rank 0: end `follow` on every other rank."""
        for rank in range(1, self.comm.size):
            self.comm.send(None, dest=rank)

    def _forward(self, step: Step) -> Array | None:
        for slot in step.closed:
            del self.caches[slot]
        for slot, capacity in step.opened:
            shape = (len(self.layers), 2, self.kv_heads, capacity, self.head_size)
            self.caches[slot] = np.empty(shape, np.float32)
        if not step.segments:
            return None
        ends = np.cumsum([len(segment.tokens) for segment in step.segments]).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        x = self._receive_or_embed(step, ends[-1])
        for index, (qkv, dense, gate_up, proj, norm_in, norm_post) in enumerate(self.layers):
            normed = _rms_norm(x, norm_in, self.epsilon)
            attended = self._attention(index, _linear(normed, qkv, spans), step.segments, spans)
            x = x + self._sum_over_tp(_linear(attended, dense, spans))
            normed = _rms_norm(x, norm_post, self.epsilon)
            both = _linear(normed, gate_up, spans)
            width = both.shape[1] // 2
            x = x + self._sum_over_tp(_linear(_silu(both[:, :width]) * both[:, width:], proj, spans))
        if self.head is None or self.final_norm is None:
            self.comm.Send(x, dest=self.comm.rank + self.tp)
            return None
        rows = [end - 1 for segment, end in zip(step.segments, ends, strict=True) if segment.wants_logits]
        if not rows:
            return None
        x = _rms_norm(x[rows], self.final_norm, self.epsilon)
        return self._logits(_linear(x, self.head, [(i, i + 1) for i in range(len(rows))]))

    def _receive_or_embed(self, step: Step, rows: int) -> Array:
        if self.stage:
            x = np.empty((rows, self.hidden), np.float32)
            _wait_for(self.comm, self.comm.rank - self.tp)
            self.comm.Recv(x, source=self.comm.rank - self.tp)
            return x
        assert self.embedding is not None
        local = np.concatenate([segment.tokens for segment in step.segments]) - self.part * len(self.embedding)
        held = (local >= 0) & (local < len(self.embedding))
        return self._sum_over_tp(np.where(held[:, None], self.embedding[np.where(held, local, 0)], np.float32(0)))

    def _attention(self, layer: int, qkv: Array, segments: list[Segment], spans: list[tuple[int, int]]) -> Array:
        """Causal grouped-query attention over each request's own cache; qkv [rows, (h + 2*kv)*d] -> [rows, h*d]."""
        d, kv = self.head_size, self.kv_heads
        out = np.empty((len(qkv), self.heads * d), np.float32)
        for segment, (first, end) in zip(segments, spans, strict=True):
            n, start = end - first, segment.start
            rows = qkv[first:end].reshape(n, -1, d)
            turned = _rotate(rows[:, : self.heads + kv], self.cos[start : start + n], self.sin[start : start + n])
            keys, values = self.caches[segment.slot][layer]
            keys[:, start : start + n] = turned[:, self.heads :].swapaxes(0, 1)
            values[:, start : start + n] = rows[:, self.heads + kv :].swapaxes(0, 1)
            queries = turned[:, : self.heads].reshape(n, kv, -1, d).transpose(1, 2, 0, 3)  # [kv, group, n, d]
            scores = queries @ keys[:, None, : start + n].swapaxes(2, 3) * np.float32(d**-0.5)
            if n > 1:
                future = np.arange(start + n) > np.arange(start, start + n)[:, None]
                scores = np.where(future, np.float32(-np.inf), scores)
            mixed = _softmax(scores) @ values[:, None, : start + n]
            out[first:end] = mixed.transpose(2, 0, 1, 3).reshape(n, -1)
        return out

    def _sum_over_tp(self, partial: Array) -> Array:
        if self.tp == 1:
            return partial
        gathered = np.empty((self.tp, *partial.shape), np.float32)
        self.tp_comm.Allgather(np.ascontiguousarray(partial), gathered)
        total = gathered[0]
        for part in gathered[1:]:
            total += part
        return total

    def _logits(self, local: Array) -> Array | None:
        """Vocabulary slices [n, V/TP] of the last stage, joined on its first rank to [n, vocab]."""
        if self.tp == 1:
            return np.ascontiguousarray(local[:, : self.vocab_size])
        gathered = np.empty((self.tp, *local.shape), np.float32) if self.part == 0 else None
        self.tp_comm.Gather(local, gathered)
        if gathered is None:
            return None
        return np.ascontiguousarray(gathered.swapaxes(0, 1).reshape(len(local), -1)[:, : self.vocab_size])


def _linear(x: Array, weight: Array, spans: list[tuple[int, int]]) -> Array:
    """x [rows, in] times weight [out, in] transposed, one product for each span of rows."""
    out = np.empty((len(x), len(weight)), np.float32)
    for first, end in spans:
        if end - first == 1:
            np.dot(weight, x[first], out=out[first])
        else:
            np.matmul(x[first:end], weight.T, out=out[first:end])
    return out


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    mean = np.add.reduce(x * x, axis=-1, keepdims=True) * np.float32(1 / x.shape[-1])
    return x / np.sqrt(mean + np.float32(epsilon)) * weight


def _silu(x: Array) -> Array:
    return x / (np.float32(1) + np.exp(-x))


def _softmax(scores: Array) -> Array:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def _rotary(size: int, positions: int, base: float) -> tuple[Array, Array]:
    angles = np.outer(np.arange(positions), base ** (-np.arange(0, size, 2) / size))
    return np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding with the halves apart (Hugging Face's layout); x [n, heads, d], cos and sin [n, 1, d/2]."""
    low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _wait_for(comm: MPI.Intracomm, source: int) -> None:
    """Return once a message from `source` is there. MPI's own wait spins: an idle fleet would burn a core a rank."""
    ready: Callable[..., Any] = comm.Iprobe
    since = time.monotonic()
    while not ready(source=source):
        waited = time.monotonic() - since
        time.sleep(0 if waited < 0.001 else 0.00005 if waited < 0.2 else 0.002)
