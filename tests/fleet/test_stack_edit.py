"""Editing a stack file's text: what is asked for changes, and not one other character."""

import difflib
import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from fleet.stack_edit import REMOVE, edited, write_atomically
from runtime.errors import Refusal

STACKS = sorted((Path(__file__).parents[2] / "stacks").glob("Pulumi.*.yaml"))
POOLS, MODELS = ("config", "tritonfleet:pools"), ("config", "tritonfleet:models")

TEXT = """\
# a stack
config:
  tritonfleet:pools:
    - name: a   # the first
      instance_types:
        # cheap
        - g6.xlarge
        - g6.2xlarge
      mig_profile: 1g.10gb # small
      max_nodes: 3

    # another
    - {name: b, capacity: [spot], max_nodes: 1}
  tritonfleet:models:
    - name: m
      quantization:
        weights: "none"
      pool: a # why
# the end
"""


def loaded(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)  # pyright: ignore[reportUnknownMemberType]


def changed_lines(old: str, new: str) -> list[str]:
    return [line for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]


@pytest.mark.parametrize(
    ("place", "value", "lines"),
    [
        ((*POOLS, 0, "max_nodes"), 7, ["-       max_nodes: 3", "+       max_nodes: 7"]),
        ((*MODELS, 0, "pool"), "b", ["-       pool: a # why", "+       pool: b # why"]),
        ((*POOLS, 1, "capacity"), ["spot", "on-demand"], None),
        ((*POOLS, 1, "mig_profile"), "2g.20gb", None),
        ((*POOLS, 1, "max_nodes"), REMOVE, None),
        ((*POOLS, 0, "mig_profile"), REMOVE, ["-       mig_profile: 1g.10gb # small"]),
        ((*MODELS, 0, "tensor_parallel"), 8, ["+       tensor_parallel: 8"]),
        ((*MODELS, 0, "quantization", "kv_cache"), "fp8", ["+         kv_cache: fp8"]),
        ((*MODELS, 0, "serving"), {"replicas": 2}, ["+       serving: {replicas: 2}"]),
        ((*POOLS, 0, "capacity"), ["spot"], ["+       capacity: [spot]"]),
        ((*MODELS, 0, "revision"), "1e5", ['+       revision: "1e5"']),
        ((*MODELS, 0, "revision"), "no", None),
        (
            (*POOLS, 0, "instance_types"),
            ["p5.48xlarge"],
            [
                "-       instance_types:",
                "-         # cheap",
                "-         - g6.xlarge",
                "-         - g6.2xlarge",
                "+       # cheap",
                "+       instance_types: [p5.48xlarge]",
            ],
        ),
    ],
)
def test_one_change_changes_its_lines_alone(place: Any, value: Any, lines: list[str] | None) -> None:
    text = edited(TEXT, {place: value})
    document = loaded(TEXT)
    target = document
    for key in place[:-1]:
        target = target[key]
    if value is REMOVE:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    assert loaded(text) == document
    found = changed_lines(TEXT, text)
    if lines is None:
        assert len(found) <= 2
    else:
        assert sorted(found) == sorted(lines)
    for comment in ("# a stack", "# the first", "# cheap", "# another", "# why", "# the end"):
        assert comment in text


def test_an_item_more_goes_to_the_end_of_the_list() -> None:
    text = edited(TEXT, {(*POOLS, 2): {"name": "c", "instance_types": ["p5.48xlarge"]}})
    assert loaded(text)["config"]["tritonfleet:pools"][2] == {"name": "c", "instance_types": ["p5.48xlarge"]}
    assert changed_lines(TEXT, text) == ["+     - name: c", "+       instance_types: [p5.48xlarge]"]


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_stack_of_ours_changes_by_what_is_asked(path: Path, newline: str) -> None:
    text = path.read_text(encoding="utf-8").replace("\n", newline)
    new = edited(text, {(*MODELS, 0, "tensor_parallel"): 4, (*MODELS, 0, "max_num_tokens"): 1234})
    assert len(changed_lines(text, new)) <= 4
    assert new.count(newline) == len(new.splitlines())
    assert edited(new, {(*MODELS, 0, "max_num_tokens"): REMOVE}).count("1234") == 0


def test_a_file_without_a_last_newline_and_an_anchored_value() -> None:
    text = TEXT.rstrip().removesuffix("# the end").rstrip()
    assert loaded(edited(text, {(*MODELS, 0, "tensor_parallel"): 2}))["config"][MODELS[1]][0]["tensor_parallel"] == 2
    shared = TEXT.replace("max_nodes: 3", "max_nodes: &n 3").replace("max_nodes: 1", "max_nodes: *n ")
    with pytest.raises(Refusal, match="cannot be set without changing other settings"):
        edited(shared, {(*POOLS, 1, "max_nodes"): 5})


def test_writing_replaces_the_file_whole_and_keeps_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    write_atomically(path, "new\r\n")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new\r\n", 0o640)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Refusal, match="No space left"):
        write_atomically(path, "never")
    assert path.read_bytes() == b"new\r\n"
    assert list(tmp_path.iterdir()) == [path]
