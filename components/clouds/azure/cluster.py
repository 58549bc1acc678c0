"""The AKS control plane with its system nodes, who it is in Azure, and how one logs in to it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
from pulumi_azure_native import authorization, containerservice, managedidentity
from pulumi_azure_native.containerservice.outputs import CredentialResultResponse

from components.clouds.azure.computed import computed
from components.clouds.azure.network import Network
from components.clouds.azure.roles import Role, assign
from components.clouds.base import guarded
from planner.fleet import CloudPlan

OS_SKU = "Ubuntu"
"""On every node. Which Ubuntu it is follows from the Kubernetes version, so that all nodes have the same one, as the
GPU operator and InfiniBand's driver want (AKS documentation, "Upgrade operating system versions")."""

SYSTEM_DISK_GIB = 128
"""Holds Triton's image twice, packed and unpacked: the Job that downloads weights runs in it."""

_IMMUTABLE = (
    "apiServerAccessProfile.enablePrivateCluster",
    "diskEncryptionSetID",
    "dnsPrefix",
    "networkProfile.podCidr",
    "networkProfile.serviceCidr",
    "nodeResourceGroup",
)
"""What AKS refuses to change of a cluster that is there."""


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """`blobs` says that pods mount the model bucket. Disks are encrypted by `disk_encryption_set_id`, once
    `disks_granted` lets it use its key."""

    plan: CloudPlan
    cluster_name: str
    resource_group: pulumi.Input[str]
    subscription: pulumi.Input[str]
    network: Network
    disk_encryption_set_id: pulumi.Input[str]
    disks_granted: pulumi.Resource
    blobs: bool


class Cluster(pulumi.ComponentResource):
    """The control plane and the system nodes. `issuer` is the URL of its OIDC issuer."""

    resource: containerservice.ManagedCluster
    issuer: pulumi.Output[str]
    kubeconfig: pulumi.Output[str]

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:AzureCluster", name, None, opts)
        self._prefix, self._args = name, args
        plan, config = args.plan, args.plan.cluster
        own, kubelet = self._identity("cluster"), self._identity("kubelet")
        administrators = list(config.administrators)
        self.resource = containerservice.ManagedCluster(
            f"{name}-aks",
            resource_name_=args.cluster_name,
            resource_group_name=args.resource_group,
            location=plan.region,
            dns_prefix=args.cluster_name,
            node_resource_group=f"{args.cluster_name}-nodes",
            kubernetes_version=config.kubernetes_version,
            # The free tier has no service level, and is for ten nodes.
            sku=containerservice.ManagedClusterSKUArgs(name="Base", tier="Standard"),
            identity=containerservice.ManagedClusterIdentityArgs(
                type=containerservice.ResourceIdentityType.USER_ASSIGNED, user_assigned_identities=[own.id]
            ),
            identity_profile={
                "kubeletidentity": containerservice.UserAssignedIdentityArgs(
                    resource_id=kubelet.id, client_id=kubelet.client_id, object_id=kubelet.principal_id
                )
            },
            enable_rbac=True,
            aad_profile=containerservice.ManagedClusterAADProfileArgs(
                managed=True, enable_azure_rbac=False, admin_group_object_ids=administrators
            )
            if administrators
            else None,
            # Local accounts are a certificate that nobody can take back. Without administrators there is no other way
            # in: who deploys is unknown before Azure is asked, and nothing here may ask.
            disable_local_accounts=bool(administrators),
            oidc_issuer_profile=containerservice.ManagedClusterOIDCIssuerProfileArgs(enabled=True),
            security_profile=containerservice.ManagedClusterSecurityProfileArgs(
                workload_identity=containerservice.ManagedClusterSecurityProfileWorkloadIdentityArgs(enabled=True),
                image_cleaner=containerservice.ManagedClusterSecurityProfileImageCleanerArgs(
                    enabled=True, interval_hours=7 * 24
                ),
            ),
            api_server_access_profile=self._api_access(),
            network_profile=self._network_profile(),
            disk_encryption_set_id=args.disk_encryption_set_id,
            storage_profile=self._storage_drivers(),
            auto_scaler_profile=_autoscaler(),
            # AKS upgrading by itself takes control plane and nodes together, which spot pools do not allow, and then
            # refuses to take one after the other, which is what an edit of the version does (AKS documentation,
            # "Automatically upgrade a cluster", "Add a Spot node pool").
            auto_upgrade_profile=containerservice.ManagedClusterAutoUpgradeProfileArgs(
                upgrade_channel="none", node_os_upgrade_channel="NodeImage"
            ),
            agent_pool_profiles=[self._system_pool()],
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[*args.network.ready, args.disks_granted, *self._rights(own, kubelet)],
                protect=guarded(plan, "cluster"),
                # AKS lists every pool of the cluster here: after a refresh the GPU pools would look like an edit.
                ignore_changes=["agentPoolProfiles"],
                replace_on_changes=list(_IMMUTABLE),
                # The name is the same.
                delete_before_replace=True,
            ),
        )
        self._image_window()
        self.issuer = computed(
            self.resource,
            self.resource.oidc_issuer_profile,
            lambda profile: profile.issuer_url if profile else None,
        )
        credentials = containerservice.list_managed_cluster_user_credentials_output(
            resource_group_name=args.resource_group,
            # An output, and so unknown until there is a cluster: a first preview asks Azure nothing.
            resource_name=self.resource.name,
            format="exec",
            opts=pulumi.InvokeOutputOptions(parent=self),
        )
        self.kubeconfig = pulumi.Output.secret(credentials.kubeconfigs.apply(_kubeconfig))
        self.register_outputs({"cluster_name": args.cluster_name})

    def _identity(self, name: str) -> managedidentity.UserAssignedIdentity:
        return managedidentity.UserAssignedIdentity(
            f"{self._prefix}-{name}",
            resource_group_name=self._args.resource_group,
            location=self._args.plan.region,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _rights(
        self, own: managedidentity.UserAssignedIdentity, kubelet: managedidentity.UserAssignedIdentity
    ) -> list[authorization.RoleAssignment]:
        """All that the control plane may do outside the resource group of its nodes, which is its own."""
        args = self._args
        reserved = {
            group.reservation: pool.name for pool in args.plan.pools for group in pool.node_groups if group.reservation
        }
        wanted: list[tuple[str, Role, pulumi.Input[str]]] = [
            # Nodes join the network, and a private API has its endpoint there (AKS documentation, "Use managed
            # identities", "Create a private cluster").
            ("network", Role.NETWORK_CONTRIBUTOR, args.network.id),
            ("kubelet", Role.IDENTITY_OPERATOR, kubelet.id),
            ("disks", Role.READER, args.disk_encryption_set_id),
            *((f"reservation-{pool}", Role.CONTRIBUTOR, group) for group, pool in sorted(reserved.items())),
        ]
        return [
            assign(
                f"{self._prefix}-{name}",
                role,
                own.principal_id,
                scope=scope,
                subscription=args.subscription,
                opts=pulumi.ResourceOptions(parent=self),
            )
            for name, role, scope in wanted
        ]

    def _api_access(self) -> containerservice.ManagedClusterAPIServerAccessProfileArgs:
        ranges = self._args.plan.cluster.api_cidrs
        if not ranges:
            return containerservice.ManagedClusterAPIServerAccessProfileArgs(
                disable_run_command=True,
                enable_private_cluster=True,
                private_dns_zone="system",
                # A public name for the private address: peered networks need no zone of ours.
                enable_private_cluster_public_fqdn=True,
            )
        return containerservice.ManagedClusterAPIServerAccessProfileArgs(
            disable_run_command=True,
            # Nodes too come to a public API, from the NAT gateway.
            authorized_ip_ranges=[*ranges, pulumi.Output.concat(self._args.network.nat_address, "/32")],
        )

    def _network_profile(self) -> containerservice.ContainerServiceNetworkProfileArgs:
        plan = self._args.plan.network
        return containerservice.ContainerServiceNetworkProfileArgs(
            network_plugin="azure",
            network_plugin_mode="overlay",
            network_dataplane="cilium",
            network_policy="cilium",
            pod_cidr=plan.pod_cidr,
            service_cidr=plan.service_cidr,
            dns_service_ip=str(IPv4Network(plan.service_cidr)[10]),
            outbound_type="userAssignedNATGateway",
            load_balancer_sku="standard",
        )

    def _storage_drivers(self) -> containerservice.ManagedClusterStorageProfileArgs:
        """Of what pods mount, and no other. Lustre's driver is none of AKS's own."""
        return containerservice.ManagedClusterStorageProfileArgs(
            blob_csi_driver=containerservice.ManagedClusterStorageProfileBlobCSIDriverArgs(enabled=self._args.blobs),
            file_csi_driver=containerservice.ManagedClusterStorageProfileFileCSIDriverArgs(
                enabled=self._args.plan.storage.kind == "nfs"
            ),
            disk_csi_driver=containerservice.ManagedClusterStorageProfileDiskCSIDriverArgs(enabled=False),
            snapshot_controller=containerservice.ManagedClusterStorageProfileSnapshotControllerArgs(enabled=False),
        )

    def _system_pool(self) -> containerservice.ManagedClusterAgentPoolProfileArgs:
        """Nodes for controllers: fixed in number, without GPUs, never spot, over all zones."""
        plan = self._args.plan
        return containerservice.ManagedClusterAgentPoolProfileArgs(
            name="system",
            mode="System",
            type="VirtualMachineScaleSets",
            vm_size=plan.system_instance_type,
            count=plan.cluster.system_nodes,
            orchestrator_version=plan.cluster.kubernetes_version,
            availability_zones=zone_numbers(plan.network.zones),
            vnet_subnet_id=self._args.network.nodes,
            os_type="Linux",
            os_sku=OS_SKU,
            os_disk_type="Managed",
            os_disk_size_gb=SYSTEM_DISK_GIB,
            enable_encryption_at_host=True,
            enable_node_public_ip=False,
            security_profile=containerservice.AgentPoolSecurityProfileArgs(ssh_access="Disabled"),
        )

    def _image_window(self) -> None:
        """When nodes may get new images: that drains them, and restarts a whole group."""
        config = "aksManagedNodeOSUpgradeSchedule"
        containerservice.MaintenanceConfiguration(
            f"{self._prefix}-{config}",
            config_name=config,
            resource_group_name=self._args.resource_group,
            resource_name_=self.resource.name,
            maintenance_window=containerservice.MaintenanceWindowArgs(
                schedule=containerservice.ScheduleArgs(
                    weekly=containerservice.WeeklyScheduleArgs(day_of_week="Sunday", interval_weeks=1)
                ),
                start_time="02:00",
                utc_offset="+00:00",
                duration_hours=6,
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )


def zone_numbers(zones: Sequence[str]) -> list[str] | None:
    """AKS's own numbers of zones (`eastus-1`); None in a region without any (`westus-0`)."""
    numbers = [zone.rpartition("-")[2] for zone in zones]
    return None if "0" in numbers else numbers


def _autoscaler() -> containerservice.ManagedClusterPropertiesAutoScalerProfileArgs:
    """Grows and shrinks pools as our own autoscaler does on other clouds (components/platform/autoscaler.py).

    AKS has no setting for the threshold of GPU nodes, which is a half.
    """
    return containerservice.ManagedClusterPropertiesAutoScalerProfileArgs(
        expander="priority",
        balance_similar_node_groups="false",
        scale_down_utilization_threshold="0",
        ignore_daemonsets_utilization=True,
        skip_nodes_with_local_storage="false",
        scale_down_unneeded_time="10m",
        scale_down_delay_after_add="10m",
        max_node_provision_time="25m",
        scale_down_unready_time="30m",
    )


def _kubeconfig(credentials: Sequence[CredentialResultResponse]) -> str:
    """With Entra the kubeconfig names kubelogin, which is to use the Azure CLI's login instead of asking a person."""
    return base64.b64decode(credentials[0].value).decode().replace("devicecode", "azurecli")
