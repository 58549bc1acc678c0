"""Checkpoints of the Hugging Face Hub, `hf://ORG/NAME`. The revision is a commit hash.

Large files are compared with the Hub's sha256, small ones with git's id of them.
"""

import glob
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from runtime.checkpoint_files import Checksum, SourceFile
from runtime.errors import Refusal
from runtime.hub_errors import refusal_of

SCHEME = "hf"


class Hub:
    """One repository at one revision."""

    def __init__(self, name: str, revision: str) -> None:
        self.repository, self.revision = name, revision

    def refusals(self, into: Path) -> AbstractContextManager[None]:
        return refusal_of(self.repository, self.revision, into)

    def files(self, staging: Path, progress: Callable[[str], None]) -> list[SourceFile]:
        """Every file of the repository."""
        del progress
        # Listed here and not left to snapshot_download, which takes a folder as it is when the Hub does not answer.
        listed = _hub(staging).HfApi().list_repo_tree(self.repository, revision=self.revision, recursive=True)
        return [_source_file(entry) for entry in listed if hasattr(entry, "blob_id")]  # folders have none

    def rounds(self, files: Sequence[SourceFile]) -> list[Sequence[SourceFile]]:
        """All files at once."""
        return [files]

    def download(self, staging: Path, files: Sequence[SourceFile]) -> None:
        """Every file, in `staging`. What an earlier fetch completed there is not fetched again."""
        _remove_unfinished(staging)
        patterns = [glob.escape(file.path) for file in files]
        _hub(staging).snapshot_download(
            self.repository, revision=self.revision, local_dir=staging, allow_patterns=patterns
        )


def _hub(staging: Path) -> Any:
    """The module huggingface_hub, of 0.3x in serving images and newer ones alike. Raises Refusal.

    It reads its environment once, at import. What it keeps for itself (its cache; never the checkpoint) must lie where
    a pod with a read-only root may write.
    """
    if not {"HF_HOME", "XDG_CACHE_HOME"} & os.environ.keys():
        os.environ["HF_HOME"] = str(staging / ".cache" / "home")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Chunks are worth keeping only for a second download; older versions keep 10 GB of them.
    os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
    try:
        import huggingface_hub
    except ImportError:
        raise Refusal(
            "the package huggingface_hub is not installed",
            "there is nothing to fetch with",
            "run `pip install huggingface_hub`; pods have it from requirements/pods.txt",
        ) from None
    return huggingface_hub


def _source_file(entry: Any) -> SourceFile:
    checksum = Checksum("sha256", entry.lfs.sha256) if entry.lfs else Checksum("git", entry.blob_id)
    return SourceFile(entry.path, entry.size, checksum, entry.blob_id)


def _remove_unfinished(staging: Path) -> None:
    """Parts that a killed fetch left and nobody will go on with: newer hubs name each process's anew."""
    for part in (staging / ".cache").rglob("*.incomplete"):
        if re.search(r"\.[0-9a-f]{8}\.incomplete$", part.name):
            part.unlink(missing_ok=True)
