"""The GKE control plane, and the account that all nodes run as."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_gcp import container, projects, serviceaccount

from components.clouds.base import guarded
from components.clouds.gcp.network import PODS, SERVICES, Network
from components.clouds.gcp.project import shortened
from planner.fleet import CloudPlan

NODE_ROLES = ("roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader")
"""All that a node itself may do: write logs and metrics, pull images. Pods have identities of their own."""

CONTROL_PLANE_LOGS = ("APISERVER", "CONTROLLER_MANAGER", "SCHEDULER", "SYSTEM_COMPONENTS", "WORKLOADS")
"""Audit logs are written whatever is said here."""


def node_account(
    name: str, cluster_name: str, project: str, parent: pulumi.Resource
) -> tuple[serviceaccount.Account, list[pulumi.Resource]]:
    """The account that nodes run as instead of the project's default one, and its rights, which nodes wait for."""
    account = serviceaccount.Account(
        name,
        # IAM API, ServiceAccount: 6 to 30 letters.
        account_id=shortened(f"{cluster_name}-nodes", 30),
        display_name=f"Nodes of {cluster_name}",
        opts=pulumi.ResourceOptions(parent=parent),
    )
    rights: list[pulumi.Resource] = [
        projects.IAMMember(
            f"{name}-{role.rpartition('.')[2].lower()}",
            project=project,
            role=role,
            member=account.member,
            opts=pulumi.ResourceOptions(parent=parent),
        )
        for role in NODE_ROLES
    ]
    return account, rights


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """`cluster_name` is the name in Google Cloud. Nodes run as `node_account`; `secrets_key` encrypts Kubernetes
    secrets. `reads_bucket` says that pods mount the model bucket."""

    plan: CloudPlan
    project: str
    cluster_name: str
    network: Network
    node_account: pulumi.Input[str]
    secrets_key: pulumi.Input[str]
    disks_key: pulumi.Input[str]
    reads_bucket: bool
    depends_on: Sequence[pulumi.Resource]


class Cluster(pulumi.ComponentResource):
    """A regional, private control plane without nodes."""

    resource: container.Cluster
    kubeconfig: pulumi.Output[str]

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("tritonfleet:clouds:GcpCluster", name, None, opts)
        plan, config = args.plan, args.plan.cluster
        enabled = guarded(plan, "cluster")
        self.resource = container.Cluster(
            f"{name}-gke",
            name=args.cluster_name,
            location=plan.region,
            node_locations=sorted(plan.network.zones),
            # The least version; the channel brings patches, and newer minor versions when it is their time.
            min_master_version=config.kubernetes_version,
            release_channel=container.ClusterReleaseChannelArgs(channel="REGULAR"),
            network=args.network.network.id,
            subnetwork=args.network.subnet.id,
            networking_mode="VPC_NATIVE",
            ip_allocation_policy=container.ClusterIpAllocationPolicyArgs(
                cluster_secondary_range_name=PODS, services_secondary_range_name=SERVICES
            ),
            # Cilium: NetworkPolicies are wishes until something enforces them.
            datapath_provider="ADVANCED_DATAPATH",
            # Of use to pods over RDMA or GPUDirect alone, but a cluster cannot be given it later.
            enable_multi_networking=True,
            # Network policies let pods ask kube-dns, and nothing that stands before it. NodeLocal DNSCache, which new
            # clusters have otherwise, would (GKE documentation, "Set up NodeLocal DNSCache").
            dns_config=container.ClusterDnsConfigArgs(cluster_dns="KUBE_DNS"),
            # No range for the control plane: it is connected by Private Service Connect, and calls webhooks by way of
            # nodes (konnectivity-agent), where with VPC peering a firewall would let it call port 443 and 10250 alone.
            private_cluster_config=container.ClusterPrivateClusterConfigArgs(
                enable_private_nodes=True, enable_private_endpoint=not config.api_cidrs
            ),
            master_authorized_networks_config=container.ClusterMasterAuthorizedNetworksConfigArgs(
                cidr_blocks=[
                    container.ClusterMasterAuthorizedNetworksConfigCidrBlockArgs(cidr_block=cidr)
                    for cidr in (plan.network.cidr, *plan.network.peered_cidrs, *config.api_cidrs)
                ],
                # Otherwise the virtual machines of every customer could try.
                gcp_public_cidrs_access_enabled=False,
                private_endpoint_enforcement_enabled=True,
            ),
            workload_identity_config=container.ClusterWorkloadIdentityConfigArgs(
                workload_pool=f"{args.project}.svc.id.goog"
            ),
            database_encryption=container.ClusterDatabaseEncryptionArgs(state="ENCRYPTED", key_name=args.secrets_key),
            master_auth=container.ClusterMasterAuthArgs(
                client_certificate_config=container.ClusterMasterAuthClientCertificateConfigArgs(
                    issue_client_certificate=False
                )
            ),
            rbac_binding_config=container.ClusterRbacBindingConfigArgs(
                enable_insecure_binding_system_authenticated=False,
                enable_insecure_binding_system_unauthenticated=False,
            ),
            anonymous_authentication_config=container.ClusterAnonymousAuthenticationConfigArgs(mode="LIMITED"),
            authenticator_groups_config=_groups(config.administrators),
            enable_shielded_nodes=True,
            security_posture_config=container.ClusterSecurityPostureConfigArgs(
                mode="BASIC", vulnerability_mode="VULNERABILITY_DISABLED"
            ),
            addons_config=_addons(plan, reads_bucket=args.reads_bucket),
            # Idle GPUs are given back sooner. Node pools are ours alone to make.
            cluster_autoscaling=container.ClusterClusterAutoscalingArgs(
                enabled=False, autoscaling_profile="OPTIMIZE_UTILIZATION"
            ),
            logging_config=container.ClusterLoggingConfigArgs(enable_components=list(CONTROL_PLANE_LOGS)),
            monitoring_config=container.ClusterMonitoringConfigArgs(
                enable_components=["SYSTEM_COMPONENTS", "DCGM"],
                managed_prometheus=container.ClusterMonitoringConfigManagedPrometheusArgs(enabled=True),
            ),
            node_pool_defaults=container.ClusterNodePoolDefaultsArgs(
                node_config_defaults=container.ClusterNodePoolDefaultsNodeConfigDefaultsArgs(
                    insecure_kubelet_readonly_port_enabled="FALSE"
                )
            ),
            # GKE makes no cluster without a pool. This one is gone a minute later; its nodes are no exception.
            remove_default_node_pool=True,
            initial_node_count=1,
            node_config=container.ClusterNodeConfigArgs(
                service_account=args.node_account,
                oauth_scopes=["https://www.googleapis.com/auth/cloud-platform"],
                disk_type="pd-balanced",
                boot_disk_kms_key=args.disks_key,
                shielded_instance_config=container.ClusterNodeConfigShieldedInstanceConfigArgs(
                    enable_secure_boot=True, enable_integrity_monitoring=True
                ),
            ),
            deletion_protection=enabled,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=list(args.depends_on),
                protect=enabled,
                # With the default pool gone, what is read back here is another pool's.
                ignore_changes=["nodeConfig", "initialNodeCount"],
            ),
        )
        certificate = self.resource.master_auth.apply(lambda auth: auth.cluster_ca_certificate)
        text = pulumi.Output.all(self.resource.endpoint, certificate).apply(
            lambda known: kubeconfig(args.cluster_name, endpoint=known[0], certificate=known[1])
        )
        self.kubeconfig = pulumi.Output.secret(text)
        self.register_outputs({"cluster_name": args.cluster_name})


def kubeconfig(cluster_name: str, *, endpoint: str, certificate: str | None) -> str:
    """Without a secret of its own: gke-gcloud-auth-plugin asks for a token as whoever uses it."""
    plugin = "gke-gcloud-auth-plugin"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster_name,
            "contexts": [{"name": cluster_name, "context": {"cluster": cluster_name, "user": cluster_name}}],
            "clusters": [
                {
                    "name": cluster_name,
                    "cluster": {"server": f"https://{endpoint}", "certificate-authority-data": certificate},
                }
            ],
            "users": [
                {
                    "name": cluster_name,
                    "user": {
                        "exec": {
                            "apiVersion": "client.authentication.k8s.io/v1beta1",
                            "command": plugin,
                            "installHint": f"gcloud components install {plugin}",
                            "interactiveMode": "IfAvailable",
                            "provideClusterInfo": True,
                        }
                    },
                }
            ],
        },
        sort_keys=True,
    )


def _addons(plan: CloudPlan, *, reads_bucket: bool) -> container.ClusterAddonsConfigArgs:
    kind = plan.storage.kind
    return container.ClusterAddonsConfigArgs(
        gce_persistent_disk_csi_driver_config=container.ClusterAddonsConfigGcePersistentDiskCsiDriverConfigArgs(
            enabled=True
        ),
        gcs_fuse_csi_driver_config=container.ClusterAddonsConfigGcsFuseCsiDriverConfigArgs(enabled=reads_bucket),
        gcp_filestore_csi_driver_config=container.ClusterAddonsConfigGcpFilestoreCsiDriverConfigArgs(
            enabled=kind == "nfs"
        ),
        # Nodes of every version that is left speak the file system's own port (Container API, LustreCsiDriverConfig).
        lustre_csi_driver_config=container.ClusterAddonsConfigLustreCsiDriverConfigArgs(enabled=kind == "lustre"),
        dns_cache_config=container.ClusterAddonsConfigDnsCacheConfigArgs(enabled=False),
        # Models are reached inside the cluster alone.
        http_load_balancing=container.ClusterAddonsConfigHttpLoadBalancingArgs(disabled=True),
    )


def _groups(administrators: Sequence[str]) -> container.ClusterAuthenticatorGroupsConfigArgs | None:
    """What makes Kubernetes know Google groups: those inside the one group of this name (GKE documentation, "Configure
    Google Groups for RBAC")."""
    domains = sorted({who.rpartition("@")[2] for who in administrators if who.startswith("group:")})
    if not domains:
        return None
    return container.ClusterAuthenticatorGroupsConfigArgs(security_group=f"gke-security-groups@{domains[0]}")
