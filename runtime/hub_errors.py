"""What an error of huggingface_hub means to whoever must mend it: one Refusal each, whichever version raised it."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from runtime.errors import Refusal
from runtime.files import disk_full, is_disk_full

# Versions of huggingface_hub differ in the HTTP library whose errors they let through.
LIBRARIES = {"huggingface_hub", "hf_xet", "requests", "urllib3", "httpx", "httpx2", "httpcore"}
DETAIL_CHARACTERS = 200
GIVE_TOKEN = "give a token of an account that may read it (HF_TOKEN; in a stack, hugging_face_token)"
KEPT = "nothing was published; what is complete is kept"


@contextlib.contextmanager
def refusal_of(repository: str, revision: str, into: Path) -> Generator[None]:
    """Turns errors of the disk and of the Hub into Refusals. Others are this program's own, and pass."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(into, KEPT) from error
        library = type(error).__module__.split(".")[0]
        # hf_xet, which is not written in Python, raises bare RuntimeErrors.
        if library in LIBRARIES or isinstance(error, OSError | RuntimeError):
            raise _refusal(error, repository, revision) from error
        raise


def _refusal(error: Exception, repository: str, revision: str) -> Refusal:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status, has_token = _status(error), _has_token()
    if "GatedRepoError" in kinds:
        if not has_token:
            return Refusal(f"{repository} is gated, and no token was given", KEPT, GIVE_TOKEN)
        agree = f"with that account, agree to the terms on https://huggingface.co/{repository}, or {GIVE_TOKEN}"
        return Refusal(f"{repository} is gated, and the account of the given token may not read it", KEPT, agree)
    if "RevisionNotFoundError" in kinds:
        return Refusal(
            f"{repository} has no revision {revision}", KEPT, "correct `revision`: a commit hash of that repository"
        )
    if "RepositoryNotFoundError" in kinds:
        # The Hub does not tell strangers which private repositories exist.
        hidden = "the given token's account may not see it" if has_token else "it is private and no token was given"
        return Refusal(f"{repository} does not exist, or {hidden}", KEPT, f"correct `source`, or {GIVE_TOKEN}")
    if status in (401, 403):
        who = "the given token" if has_token else "a fetch without a token"
        return Refusal(f"the Hub refuses {who} with status {status}", KEPT, GIVE_TOKEN)
    if status is not None:
        return Refusal(
            f"the Hub answered status {status} for {repository}: {_detail(error)}", KEPT, "run it again later"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return Refusal(
        f"{repository} could not be fetched from {endpoint} ({type(error).__name__}: {_detail(error)})",
        KEPT,
        f"see that this pod may reach {endpoint} (network policy, NAT, proxy, HF_HUB_OFFLINE), and run it again",
    )


def _has_token() -> bool:
    """Whether huggingface_hub finds a token, in HF_TOKEN or in the file that HF_TOKEN_PATH names."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return False
    return get_token() is not None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of the answer that an error, or what caused it, came with."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _detail(error: BaseException) -> str:
    """The first words of what went wrong first: what is raised on top of it speaks of caches."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:DETAIL_CHARACTERS]
