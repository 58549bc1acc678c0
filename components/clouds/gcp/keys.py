"""The keys that everything at rest is encrypted with, and the service agents that may use them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_gcp import kms, projects

from components.clouds.gcp.project import STORAGE_APIS
from planner.fleet import StoragePlan

_USER = "roles/cloudkms.cryptoKeyEncrypterDecrypter"


@dataclass(frozen=True, kw_only=True)
class KeysArgs:
    """Keys of `storage.keep_data` are kept when the stack is destroyed: what they encrypt is kept too, and worth
    nothing without."""

    region: str
    storage: StoragePlan


class Keys(pulumi.ComponentResource):
    """`secrets` encrypts Kubernetes secrets, `disks` the nodes' disks, `data` bucket and file system.

    What is made with a key waits for its grant. `project_number` is the project's other name.
    """

    secrets: kms.CryptoKey
    disks: kms.CryptoKey
    data: kms.CryptoKey
    secrets_grant: pulumi.Resource
    disks_grant: pulumi.Resource
    data_grants: Sequence[pulumi.Resource]
    project_number: pulumi.Output[str]

    def __init__(self, name: str, args: KeysArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpKeys", name, None, opts)
        self._prefix, self._keep = name, args.storage.keep_data
        self._child = pulumi.ResourceOptions(parent=self)
        # Google never deletes a key ring, nor gives its name away again: each one is named anew.
        self._ring = kms.KeyRing(
            f"{name}-ring",
            location=args.region,
            opts=pulumi.ResourceOptions(parent=self, protect=self._keep, retain_on_delete=self._keep),
        )
        self.secrets, self.disks, self.data = (self._key(what) for what in ("secrets", "disks", "data"))
        service = STORAGE_APIS[args.storage.kind]
        # The agents of these services come into being when they are asked for; their names tell the project's number.
        gke = self._agent("container")
        files = self._agent(service)
        self.project_number = gke.email.apply(lambda email: email.partition("@")[0].removeprefix("service-"))
        self.secrets_grant = self._grant("secrets", "gke", self.secrets, gke.email)
        # That of Compute Engine comes with its API; that of Cloud Storage, when somebody asks for it (docs/gcp.md).
        self.disks_grant = self._grant("disks", "compute", self.disks, self._email("compute-system"))
        self.data_grants = [
            self._grant("data", "storage", self.data, self._email("gs-project-accounts")),
            self._grant("data", service, self.data, files.email),
        ]
        self.register_outputs({})

    def _key(self, what: str) -> kms.CryptoKey:
        return kms.CryptoKey(
            f"{self._prefix}-{what}",
            key_ring=self._ring.id,
            purpose="ENCRYPT_DECRYPT",
            rotation_period="7776000s",  # 90 days
            destroy_scheduled_duration="2592000s",  # 30 days
            opts=pulumi.ResourceOptions(parent=self, protect=self._keep, retain_on_delete=self._keep),
        )

    def _agent(self, service: str) -> projects.ServiceIdentity:
        return projects.ServiceIdentity(
            f"{self._prefix}-{service}", service=f"{service}.googleapis.com", opts=self._child
        )

    def _email(self, agent: str) -> pulumi.Output[str]:
        return pulumi.Output.concat("service-", self.project_number, f"@{agent}.iam.gserviceaccount.com")

    def _grant(
        self,
        key_name: str,
        agent: str,
        key: kms.CryptoKey,
        email: pulumi.Output[str],
    ) -> pulumi.Resource:
        return kms.CryptoKeyIAMMember(
            f"{self._prefix}-{key_name}-{agent}",
            crypto_key_id=key.id,
            role=_USER,
            member=pulumi.Output.concat("serviceAccount:", email),
            # What is kept must stay readable.
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=self._keep),
        )
