"""The keys file as the kubelet mounts it: a Secret's volume, swapped in one step when the Secret changes."""

import json
from pathlib import Path

import pytest

from frontend.errors import ApiError
from frontend.keys import Keys, digest
from tests.kubelet.volumes import rewrite_atomically, write_atomically


def secret(**keys: str) -> dict[str, bytes]:
    lines = [{"name": name, "sha256": digest(key)} for name, key in keys.items()]
    return {"keys.json": json.dumps({"keys": lines}).encode()}


def test_a_changed_secret_lets_the_new_key_in_and_the_old_one_out(tmp_path: Path) -> None:
    write_atomically(tmp_path, secret(a="first"))
    keys = Keys(tmp_path / "keys.json")
    assert keys.caller("Bearer first").key.name == "a"

    for number in range(5):  # of the same size, within the same second
        rewrite_atomically(tmp_path, secret(a=f"key-{number}"))
        assert keys.caller(f"Bearer key-{number}").key.name == "a"
        for gone in ("first", f"key-{number - 1}"):
            with pytest.raises(ApiError):
                keys.caller(f"Bearer {gone}")
