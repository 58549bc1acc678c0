"""Of pulumi-policy what the pack uses: the package is in an environment of its own, and untyped in places."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

class EnforcementLevel(Enum):
    ADVISORY = "advisory"
    MANDATORY = "mandatory"

class PolicyConfigSchema:
    def __init__(self, properties: dict[str, dict[str, Any]], required: list[str] | None = None) -> None: ...

class PolicyResourceOptions:
    protect: bool

class PolicyResource:
    resource_type: str
    props: Mapping[str, Any]
    urn: str
    opts: PolicyResourceOptions
    dependencies: Sequence[PolicyResource]

class ResourceValidationArgs:
    resource_type: str
    props: Mapping[str, Any]
    urn: str
    opts: PolicyResourceOptions
    def get_config(self) -> Mapping[str, Any]: ...

class StackValidationArgs:
    resources: Sequence[PolicyResource]
    def get_config(self) -> Mapping[str, Any]: ...

ReportViolation = Callable[[str, str | None], None]

class Policy: ...

class ResourceValidationPolicy(Policy):
    def __init__(
        self,
        name: str,
        description: str,
        validate: Callable[[ResourceValidationArgs, ReportViolation], None],
        enforcement_level: EnforcementLevel | None = None,
        config_schema: PolicyConfigSchema | None = None,
    ) -> None: ...

class StackValidationPolicy(Policy):
    def __init__(
        self,
        name: str,
        description: str,
        validate: Callable[[StackValidationArgs, ReportViolation], None],
        enforcement_level: EnforcementLevel | None = None,
        config_schema: PolicyConfigSchema | None = None,
    ) -> None: ...

class PolicyPack:
    def __init__(self, name: str, policies: list[Policy]) -> None: ...
