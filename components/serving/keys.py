"""The API keys of a stack: one Secret for all its models, which frontends read again when it changes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core.v1 import Secret
from pulumi_kubernetes.meta.v1 import ObjectMetaArgs
from pulumi_random import RandomPassword

from components.serving.common import Common
from components.serving.labels import common_labels
from planner.api_keys import GENERATED, read_keys
from planner.cloud_config import KeyLimits

SECRET = "api-keys"
FOLDER = "/etc/tritonfleet/api-keys"
FILE = "keys.json"
_LENGTH = 43  # letters and digits: 256 bits


@dataclass(frozen=True, kw_only=True)
class ApiKeysArgs:
    """`keys` is the stack's value, None where it gives none; `limits` are by the keys' names."""

    keys: pulumi.Input[str] | None
    limits: Mapping[str, KeyLimits]
    common: Common
    random: pulumi.ProviderResource


class ApiKeys(pulumi.ComponentResource):
    """The Secret that leaders mount. `generated` has the key that was made, by name; None where the stack has its own.

    The Secret is changed in place, and no pod with it: the kubelet brings the new file to pods that run, within about a
    minute. It holds digests only.
    """

    secret: Secret
    generated: pulumi.Output[Mapping[str, str]] | None

    def __init__(self, name: str, args: ApiKeysArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:serving:ApiKeys", name, None, opts)
        if args.keys is None:
            password = RandomPassword(
                f"{name}-key",
                length=_LENGTH,
                special=False,
                opts=pulumi.ResourceOptions(parent=self, provider=args.random),
            )
            keys = self.generated = pulumi.Output.secret(password.result.apply(lambda key: {GENERATED: f"sk-{key}"}))
        else:
            keys, self.generated = pulumi.Output.secret(args.keys).apply(read_keys), None
        text = keys.apply(lambda known: keys_file(known, args.limits))
        common = args.common
        self.secret = Secret(
            f"{name}-secret",
            metadata=ObjectMetaArgs(name=SECRET, namespace=common.namespace, labels=common_labels()),
            string_data={FILE: text},
            opts=pulumi.ResourceOptions.merge(
                common.child(self), pulumi.ResourceOptions(provider=common.file_provider)
            ),
        )
        self.register_outputs({})


def keys_file(keys: Mapping[str, str], limits: Mapping[str, KeyLimits]) -> str:
    """What the frontend reads (frontend/keys.py)."""
    lines = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        | (limits[name].model_dump(exclude_none=True) if name in limits else {})
        for name, key in sorted(keys.items())
    ]
    return json.dumps({"keys": lines}, indent=2) + "\n"
