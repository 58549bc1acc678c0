"""What an error of obstore means to whoever must mend it: one Refusal each."""

import contextlib
import os
import re
from collections.abc import Generator
from pathlib import Path

from runtime.errors import Refusal
from runtime.files import disk_full, is_disk_full

KEPT = "nothing was published; what is complete is kept"
DETAIL_CHARACTERS = 300
IDENTITY = {
    "s3": "the pod's role, or AWS_ACCESS_KEY_ID with its secret; a public bucket is read with --anonymous",
    "gs": "the pod's account, or GOOGLE_APPLICATION_CREDENTIALS; a public bucket is read with --anonymous",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, and the pod's identity or a key; a public one is read with --anonymous",
    "file": "the folder's permissions",
}


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Codes and words in the answers of the three stores, and in obstore's own errors.
EXPIRED = _any(
    "ExpiredToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed", "token (is|has) expired"
)
NO_BUCKET = _any("NoSuchBucket", "ContainerNotFound", "(bucket|container) does not exist")
THROTTLED = _any("SlowDown", "ServerBusy", "429 Too Many", "503 Service")
REFUSED = _any("40[13] (Unauthorized|Forbidden)", "AccessDenied", "InvalidAccessKeyId", "AuthenticationFailed")
METADATA = r"token request|latest/api/token|169\.254\.|AssumeRole"
NO_CREDENTIALS = _any(METADATA, "must be specified", "Missing AccessKey")
STATUS = re.compile(r"Server returned non-2xx status code: (\d{3}[^:]*)")
CUT = _any("decoding response body", "reading a body", "connection (closed|reset)", "unexpected EOF", "end of file")


@contextlib.contextmanager
def refusal_of(source: str, into: Path) -> Generator[None]:
    """Turns errors of the disk and of the store into Refusals. Others are this program's own, and pass."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(into, KEPT) from error
        # obstore raises Python's own FileNotFoundError beside its own kinds.
        if type(error).__module__.startswith("obstore") or isinstance(error, OSError):
            raise _refusal(error, source) from error
        raise


def is_cut(error: BaseException) -> bool:
    """Whether the connection ended in the middle of an answer."""
    return CUT.search(str(error)) is not None


def _refusal(error: Exception, source: str) -> Refusal:
    # What follows is a dump of Rust structures, which names every error there is.
    text = str(error).partition("\n\nDebug source")[0]
    scheme = source.partition("://")[0]
    identity, detail = IDENTITY[scheme], " ".join(text.split())[:DETAIL_CHARACTERS]
    if EXPIRED.search(text):
        return Refusal(f"the credentials for {source} have expired", KEPT, f"renew them: {identity}")
    if NO_BUCKET.search(text):
        return Refusal(f"there is no bucket of {source}", KEPT, _look(scheme))
    status = STATUS.search(text)
    if NO_CREDENTIALS.search(text):
        return Refusal(f"no credentials were found for {source} ({detail})", KEPT, f"give {identity}")
    if REFUSED.search(text) or isinstance(error, PermissionError):
        return Refusal(f"{source} may not be read with the credentials given ({detail})", KEPT, f"see to {identity}")
    if isinstance(error, FileNotFoundError):
        return Refusal(f"a file of {source} is gone ({detail})", KEPT, "see who removes files there, and run it again")
    if THROTTLED.search(text):
        return Refusal(f"{source} answers that it is busy, again and again", KEPT, "run it again later")
    if status:
        return Refusal(
            f"{source} answered {status[1].strip()} ({detail})", KEPT, f"run it again later; {_look(scheme)}"
        )
    return Refusal(
        f"{source} could not be reached ({detail})",
        KEPT,
        f"see that this machine may reach it (network policy, NAT, proxy), and run it again; {_look(scheme)}",
    )


def _look(scheme: str) -> str:
    where = {"s3": "AWS_ENDPOINT_URL and AWS_REGION", "gs": "GOOGLE_BASE_URL"}.get(scheme, "AZURE_STORAGE_ACCOUNT_NAME")
    named = [f"{name}={os.environ[name]}" for name in where.split(" and ") if name in os.environ]
    return f"correct `source`, or {where}" + (f" (now {', '.join(named)})" if named else "")
