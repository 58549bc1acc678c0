"""The GGUF header reader against files written by the gguf package, and against damaged ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import PlanError, Problem
from planner.gguf_header import read_gguf_config
from planner.model import facts_from_hf
from planner.sources import facts_of_file


def write(path: Path, *, architecture: str = "llama", tied: bool = True, heads: int = 9) -> Path:
    # Any: gguf's writer takes arrays without element types.
    import gguf

    writer: Any = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(8192)
    writer.add_embedding_length(576)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(heads)
    writer.add_head_count_kv(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_token_list(["<a>", "b", "cc"] * 16)
    writer.add_token_scores([0.5] * 48)
    names = ["token_embd.weight", "blk.0.attn_q.weight", *([] if tied else ["output.weight"])]
    for name in names:
        writer.add_tensor(name, np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_gives_the_facts_of_the_model(tmp_path: Path) -> None:
    facts = facts_of_file(write(tmp_path / "m.gguf"), "models[0].source")
    assert (facts.architecture, facts.num_layers, facts.hidden_size) == ("LlamaForCausalLM", 2, 576)
    assert (facts.num_heads, facts.num_kv_heads, facts.head_size) == (9, 3, 64)
    assert (facts.intermediate_size, facts.vocab_size, facts.max_position_embeddings) == (1536, 48, 8192)
    assert (facts.tied_embeddings, facts.rotary_base, facts.rope_scaling) == (True, 100000.0, None)


def test_an_output_tensor_means_untied_embeddings(tmp_path: Path) -> None:
    assert not facts_of_file(write(tmp_path / "m.gguf", tied=False), "source").tied_embeddings


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'bloom'"):
        facts_of_file(write(tmp_path / "m.gguf", architecture="bloom"), "source")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_a_plan_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = write(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()
    content = bytearray(whole[: data.draw(st.integers(4, len(whole)))])
    for place, value in data.draw(st.lists(st.tuples(st.integers(4, 600), st.integers(0, 255)), max_size=4)):
        if place < len(content):
            content[place] = value
    damaged = tmp_path_factory.mktemp("gguf") / "m.gguf"
    damaged.write_bytes(content)
    problems: tuple[Problem, ...] = ()
    try:
        facts_from_hf(read_gguf_config(damaged, "source"), "source")
    except PlanError as refusal:
        problems = refusal.problems
    assert all(problem.key.startswith("source") for problem in problems)
