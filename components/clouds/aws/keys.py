"""The keys that everything at rest is encrypted with: one for each kind of reader."""

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from components.clouds.aws.cluster import control_plane_log_group
from components.clouds.aws.identity import ARN, allow, policy
from components.clouds.aws.network import flow_log_group


@dataclass(frozen=True, kw_only=True)
class KeysArgs:
    """`keep` keeps the keys when the stack is destroyed: what they encrypt is kept too, and worth nothing without."""

    cluster_name: str
    region: str
    account: pulumi.Input[str]
    keep: bool


class Keys(pulumi.ComponentResource):
    """`secrets` encrypts Kubernetes secrets, `logs` the log groups, `data` bucket and file system."""

    secrets: aws.kms.Key
    logs: aws.kms.Key
    data: aws.kms.Key

    def __init__(self, name: str, args: KeysArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AwsKeys", name, None, opts)
        self._prefix, self._args = name, args
        self.secrets = self._key("secrets", "Kubernetes secrets")
        self.data = self._key("data", "Weights and engines")
        self.logs = self._key("logs", "Logs", _logs_policy(args))
        self.register_outputs({})

    def _key(self, name: str, what: str, document: pulumi.Output[str] | None = None) -> aws.kms.Key:
        """Without a document of its own a key obeys the account's IAM policies."""
        keep = self._args.keep
        return aws.kms.Key(
            f"{self._prefix}-{name}",
            description=f"{what} of {self._args.cluster_name}",
            enable_key_rotation=True,
            deletion_window_in_days=30,
            policy=document,
            opts=pulumi.ResourceOptions(parent=self, protect=keep, retain_on_delete=keep),
        )


def _logs_policy(args: KeysArgs) -> pulumi.Output[str]:
    """CloudWatch Logs is a service that has to be let in, and is for these two log groups only."""
    groups = pulumi.Output.from_input(args.account).apply(
        lambda account: [
            f"{ARN}:logs:{args.region}:{account}:log-group:{group}"
            for group in (control_plane_log_group(args.cluster_name), flow_log_group(args.cluster_name))
        ]
    )
    return policy(
        allow(["kms:*"], "*") | {"Principal": {"AWS": pulumi.Output.concat(f"{ARN}:iam::", args.account, ":root")}},
        allow(
            ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"],
            "*",
            {"ArnEquals": {"kms:EncryptionContext:aws:logs:arn": groups}},
        )
        | {"Principal": {"Service": f"logs.{args.region}.amazonaws.com"}},
    )
