"""API keys: only their SHA-256 is stored, and the file is read again when it changes.

{"keys": [{"name": "team-a", "sha256": "…", "requests_per_minute": 60, "tokens_per_minute": 100000}]}
"""

import hashlib
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from frontend.errors import ApiError, Refusal


class Key(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One line of the keys file; without a limit there is none."""

    name: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    requests_per_minute: Annotated[float, Meta(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Meta(gt=0)] | None = None


class KeysFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key]


class Bucket:
    """A minute's allowance that refills steadily. May be overdrawn: an answer's length is known only at its end."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute, self.level, self.at = per_minute, per_minute or 0.0, time.monotonic()

    def seconds_until(self, amount: float) -> float:
        """0 when `amount` is there now. A larger amount than a minute's is there when the bucket is full."""
        if self.per_minute is None:
            return 0.0
        now = time.monotonic()
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        return max(0.0, min(amount, self.per_minute) - self.level) * 60 / self.per_minute

    def take(self, amount: float) -> None:
        if self.per_minute is not None:
            self.level -= amount


class Caller:
    """Who a request comes from, and what is left to them."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.requests, self.tokens = Bucket(key.requests_per_minute), Bucket(key.tokens_per_minute)

    def take_request(self) -> None:
        """Raises ApiError when the key has had its requests of this minute."""
        _require(self.requests, 1, self.key.requests_per_minute, "requests")
        self.requests.take(1)

    def take_prompt(self, tokens: int) -> None:
        """Raises ApiError when the prompt is more than what is left."""
        _require(self.tokens, tokens, self.key.tokens_per_minute, "tokens")
        self.tokens.take(tokens)


ANYBODY = Caller(Key("anonymous", "0" * 64))


class Keys:
    """The callers by the digest of their key. Without a file everybody may call."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._callers: dict[str, Caller] = {}
        if path is not None:
            try:
                self._read(path)
            except (OSError, msgspec.MsgspecError) as error:
                raise Refusal(
                    f"the API keys in {path} cannot be read: {error}",
                    "nobody could be told from anybody else",
                    'write {"keys": [{"name": …, "sha256": …}]}, for instance with `python -m frontend.keys NAME`',
                ) from None

    def caller(self, authorization: str | None) -> Caller:
        """Who sends this header. Raises ApiError."""
        if self._path is None:
            return ANYBODY
        try:
            self._read(self._path)
        except (OSError, msgspec.MsgspecError) as error:
            # While a file is being replaced it may be missing or half written: those who had a key keep it.
            print(f"the API keys in {self._path} cannot be read and stay as they were: {error}", file=sys.stderr)
        scheme, _, secret = (authorization or "").partition(" ")
        caller = self._callers.get(digest(secret.strip())) if scheme.lower() == "bearer" else None
        if caller is None:
            what = "Incorrect API key provided" if authorization else "You did not provide an API key"
            raise ApiError(401, f"{what}: send `Authorization: Bearer KEY`", code="invalid_api_key")
        return caller

    def _read(self, path: Path) -> None:
        status = path.stat()
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        keys = msgspec.json.decode(path.read_bytes(), type=KeysFile).keys
        # A key that stays as it was keeps what it has used.
        before = self._callers
        self._callers = {}
        for key in keys:
            known = before.get(key.sha256)
            self._callers[key.sha256] = known if known and known.key == key else Caller(key)


def digest(secret: str) -> str:
    """Keys are 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _require(bucket: Bucket, amount: float, limit: float | None, what: str) -> None:
    if seconds := bucket.seconds_until(amount):
        raise ApiError(
            429,
            f"Rate limit reached: {limit:g} {what} per minute; try again in {seconds:.1f} s",
            kind=what,
            code="rate_limit_exceeded",
            retry_after=seconds,
        )


def _main() -> None:
    """Prints a new key, and the line of the keys file that lets it in."""
    import secrets

    key = f"sk-{secrets.token_urlsafe(32)}"
    print(f"key (shown once): {key}", file=sys.stderr)
    print(msgspec.json.encode({"name": sys.argv[1], "sha256": digest(key)}).decode())


if __name__ == "__main__":
    _main()
