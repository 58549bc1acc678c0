"""Which changes of a resource its cloud makes in place, which it makes by a new resource, and which it refuses."""

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network
from typing import Any, cast

REPLACING = {
    # "Forces new resource" in the documentation of the Terraform provider that pulumi-aws wraps.
    "aws:ec2/launchTemplate:LaunchTemplate": r"name|namePrefix",
    "aws:ec2/placementGroup:PlacementGroup": r"name|strategy|partitionCount|spreadLevel",
    "aws:ec2/securityGroup:SecurityGroup": r"name|namePrefix|vpcId|description",
    "aws:ec2/subnet:Subnet": r"vpcId|cidrBlock|availabilityZone|availabilityZoneId",
    "aws:ec2/vpc:Vpc": r"cidrBlock",
    "aws:efs/fileSystem:FileSystem": r"creationToken|encrypted|kmsKeyId|performanceMode|availabilityZoneName",
    "aws:eks/cluster:Cluster": r"name|roleArn|kubernetesNetworkConfig\b.*|bootstrapSelfManagedAddons",
    "aws:eks/nodeGroup:NodeGroup": (
        r"amiType|capacityType|clusterName|diskSize|instanceTypes\b.*|nodeGroupName|nodeGroupNamePrefix|nodeRoleArn"
        r"|subnetIds\b.*|launchTemplate\.(id|name)"
    ),
    "aws:eks/addon:Addon": r"addonName|clusterName",
    "aws:eks/podIdentityAssociation:PodIdentityAssociation": r"clusterName|namespace|serviceAccount",
    "aws:ec2/vpcEndpoint:VpcEndpoint": r"serviceName|vpcEndpointType|vpcId",
    "aws:ec2/route:Route": r"routeTableId|destinationCidrBlock",
    "aws:ec2/routeTable:RouteTable": r"vpcId",
    "aws:ec2/routeTableAssociation:RouteTableAssociation": r"subnetId|gatewayId",
    "aws:ec2/natGateway:NatGateway": r"allocationId|subnetId|connectivityType",
    "aws:ec2/flowLog:FlowLog": r"vpcId|iamRoleArn|logDestination\w*|trafficType|maxAggregationInterval|logFormat",
    "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup": r"vpcId",
    "aws:ec2/eip:Eip": r"domain",
    "aws:efs/mountTarget:MountTarget": r"fileSystemId|subnetId|ipAddress",
    "aws:efs/accessPoint:AccessPoint": r"fileSystemId|posixUser\b.*|rootDirectory\b.*",
    "aws:efs/fileSystemPolicy:FileSystemPolicy": r"fileSystemId",
    "aws:autoscaling/tag:Tag": r"autoscalingGroupName|tag\.key",
    "aws:cloudwatch/logGroup:LogGroup": r"name|namePrefix",
    "aws:fsx/lustreFileSystem:LustreFileSystem": r"deploymentType|storageType|kmsKeyId|(subnet|securityGroup)Ids\b.*",
    "aws:iam/rolePolicy:RolePolicy": r"name|role",
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": r"role|policyArn",
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": r"securityGroupId",
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": r"securityGroupId",
    "aws:iam/role:Role": r"name|namePrefix|path",
    "aws:kms/key:Key": r"customerMasterKeySpec|keyUsage",
    "aws:s3/bucket:Bucket": r"bucket|bucketPrefix",
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": r"bucket",
    "aws:s3/bucketPolicy:BucketPolicy": r"bucket",
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": r"bucket",
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": r"bucket",
    "aws:s3/bucketVersioning:BucketVersioning": r"bucket",
    # "Changes to this field will trigger recreation" or "forces a new resource" in the documentation of the Terraform
    # provider that pulumi-gcp wraps.
    "gcp:compute/firewall:Firewall": r"name|direction|project",
    "gcp:compute/globalAddress:GlobalAddress": r"name|address\w*|description|network|prefixLength|purpose|project",
    "gcp:compute/router:Router": r"name|network|region|project",
    "gcp:compute/routerNat:RouterNat": r"name|router|region|project|type",
    "gcp:dns/managedZone:ManagedZone": r"name|dnsName|visibility|project",
    "gcp:dns/recordSet:RecordSet": r"name|managedZone|project",
    "gcp:kms/cryptoKeyIAMMember:CryptoKeyIAMMember": r"cryptoKeyId|role|member|condition\b.*",
    "gcp:projects/iAMMember:IAMMember": r"project|role|member|condition\b.*",
    "gcp:projects/service:Service": r"project|service",
    "gcp:projects/serviceIdentity:ServiceIdentity": r"project|service",
    "gcp:servicenetworking/connection:Connection": r"network|service",
    "gcp:compute/network:Network": r"name|project|autoCreateSubnetworks|networkProfile",
    "gcp:compute/subnetwork:Subnetwork": r"name|project|region|network",
    "gcp:container/cluster:Cluster": (
        r"name|location|project|network|subnetwork|networkingMode|datapathProvider|defaultMaxPodsPerNode"
        r"|initialNodeCount|masterAuth\.clientCertificateConfig\b.*|ipAllocationPolicy\.(?!additional).*|privateClusterConfig\.master\w+Block"
    ),
    "gcp:container/nodePool:NodePool": (
        r"name|namePrefix|cluster|location|project|initialNodeCount|maxPodsPerNode|placementPolicy\b.*"
        r"|queuedProvisioning\b.*|networkConfig\.(additional\w+|createPodRange|podRange|podIpv4CidrBlock)\b.*"
        r"|nodeConfig\.(spot|preemptible|flexStart|metadata|serviceAccount|oauthScopes|minCpuPlatform|bootDiskKmsKey"
        r"|guestAccelerators|reservationAffinity|localSsdCount|ephemeralStorageLocalSsdConfig|maxRunDuration"
        r"|shieldedInstanceConfig|advancedMachineFeatures|hostMaintenancePolicy)\b.*"
    ),
    "gcp:filestore/instance:Instance": r"name|location|project|tier|kmsKeyName|networks\b.*|fileShares\.name",
    "gcp:kms/keyRing:KeyRing": r"name|location|project",
    "gcp:kms/cryptoKey:CryptoKey": r"name|keyRing|purpose|destroyScheduledDuration",
    "gcp:lustre/instance:Instance": r"instanceId|location|project|network|filesystem|perUnitStorageThroughput|kmsKey",
    "gcp:serviceaccount/account:Account": r"accountId|project",
    "gcp:storage/bucket:Bucket": r"name|location|project",
    # Names and places: what an Azure resource's id is made of; and azure-native's own list, replacement.go.
    "azure-native:authorization:RoleAssignment": r"principalId|scope",
    "azure-native:compute:DiskEncryptionSet": r"resourceGroupName|location",
    "azure-native:compute:ProximityPlacementGroup": r"resourceGroupName|location",
    "azure-native:containerservice:MaintenanceConfiguration": r"configName|resourceName|resourceGroupName",
    "azure-native:keyvault:Key": r"keyName|vaultName|resourceGroupName",
    "azure-native:keyvault:Vault": r"vaultName|resourceGroupName|location",
    "azure-native:network:NatGateway": r"resourceGroupName|location",
    "azure-native:network:NetworkSecurityGroup": r"resourceGroupName|location",
    "azure-native:network:PrivateDnsZoneGroup": r"privateDnsZoneGroupName|privateEndpointName|resourceGroupName",
    "azure-native:network:PrivateEndpoint": r"resourceGroupName|location|subnet\b.*",
    "azure-native:network:PublicIPAddress": r"resourceGroupName|location|sku\b.*",
    "azure-native:privatedns:PrivateZone": r"privateZoneName|resourceGroupName|location",
    "azure-native:privatedns:VirtualNetworkLink": r"privateZoneName|resourceGroupName|location",
    "azure-native:storage:BlobServiceProperties": r"accountName|blobServicesName|resourceGroupName",
    "azure-native:containerservice:AgentPool": (
        r"agentPoolName|resourceName|resourceGroupName|vmSize|gpuInstanceProfile"
    ),
    "azure-native:containerservice:ManagedCluster": (
        r"resourceName|resourceGroupName|location|diskEncryptionSetID|dnsPrefix|nodeResourceGroup"
        r"|networkProfile\.(serviceCidr|dnsServiceIP|podCidr|networkPlugin\w*|networkDataplane|networkPolicy|outboundType)"
    ),
    "azure-native:managedidentity:UserAssignedIdentity": r"resourceName|resourceGroupName|location",
    "azure-native:network:Subnet": r"subnetName|virtualNetworkName|resourceGroupName",
    "azure-native:network:VirtualNetwork": r"virtualNetworkName|resourceGroupName|location",
    "azure-native:resources:ResourceGroup": r"resourceGroupName|location",
    "azure-native:storage:BlobContainer": r"containerName|accountName|resourceGroupName",
    "azure-native:storage:FileShare": r"shareName|accountName|resourceGroupName|enabledProtocols",
    "azure-native:storage:StorageAccount": r"accountName|resourceGroupName|location|isHnsEnabled",
    "azure-native:storagecache:AmlFilesystem": r"amlFilesystemName|resourceGroupName|location",
    # Fields for which pulumi-kubernetes replaces the object (its table of them, `forceNew`).
    "kubernetes:apps/v1:DaemonSet": r"spec\.selector\b.*",
    "kubernetes:apps/v1:Deployment": r"spec\.selector\b.*",
    "kubernetes:batch/v1:Job": r"spec\.(selector|template|completions|parallelism)\b.*",
    "kubernetes:core/v1:ConfigMap": r"(binaryData|data)\b.*",
    "kubernetes:helm.sh/v3:Release": r"name|namespace",
    "kubernetes:core/v1:PersistentVolume": r"spec\.(csi|nfs)\b.*",
    "kubernetes:core/v1:PersistentVolumeClaim": r"spec\.(accessModes|selector|storageClassName|volumeName)\b.*",
    "kubernetes:core/v1:Service": r"spec\.clusterIP",
    "kubernetes:rbac.authorization.k8s.io/v1:ClusterRoleBinding": r"roleRef\b.*",
    "kubernetes:storage.k8s.io/v1:StorageClass": r"(parameters|provisioner)\b.*",
    # `DiffConfig`: where the identifier is given, it alone says which cluster it is.
    "pulumi:providers:kubernetes": r"clusterIdentifier",
    "random:index/randomPassword:RandomPassword": r".*",
}
"""Properties, as patterns of paths, whose change makes a new resource."""

IMMUTABLE = {
    # AKS documentation, "Create node pools", "Add an Azure Spot node pool", "Use GPUs" and "multi-instance GPU node
    # pools": what cannot be changed after creation. azure-native knows it as an ordinary update.
    "azure-native:containerservice:AgentPool": (
        r"maxPods|scaleSetPriority|scaleSetEvictionPolicy|spotMaxPrice|gpuProfile\b.*"
        r"|availabilityZones\b.*|osDiskType|osDiskSizeGB|vnetSubnetID|enableEncryptionAtHost|enableFIPS"
        r"|kubeletConfig\b.*|linuxOSConfig\b.*"
    ),
    "azure-native:containerservice:ManagedCluster": (r"apiServerAccessProfile\.(enablePrivateCluster|privateDNSZone)"),
    "azure-native:storagecache:AmlFilesystem": r"sku\b.*|storageCapacityTiB|filesystemSubnet|zones\b.*",
}
"""Properties, as patterns of paths, whose change the cloud's API refuses."""

SHRINKING = {
    # "storage_capacity", of which only a decrease forces a new resource.
    "aws:fsx/lustreFileSystem:LustreFileSystem": "storageCapacity",
    # "ip_cidr_range", whose expansion alone is an update.
    "gcp:compute/subnetwork:Subnetwork": "ipCidrRange",
}
"""A property that only grows in place."""

OF_EVERY_OBJECT = r"apiVersion|kind|metadata\.(name|namespace)"


def changed(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Paths at which two values differ; a list is compared item by item."""
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in sorted({*olds, *news}):
            # As the engine reads a path, and a program's `replace_on_changes` names it.
            step = f'["{key}"]' if "." in key else f".{key}" if path else key
            yield from changed(olds.get(key), news.get(key), f"{path}{step}")
    elif isinstance(old, list) and isinstance(new, list) and len(cast(list[Any], old)) == len(cast(list[Any], new)):
        for index, (before, after) in enumerate(zip(cast(list[Any], old), cast(list[Any], new), strict=True)):
            yield from changed(before, after, f"{path}[{index}]")
    elif old != new:
        yield path


def replacing(type_: str, paths: list[str]) -> list[str]:
    """Those of the changed paths that make a new resource."""
    patterns = [REPLACING[type_]] if type_ in REPLACING else []
    if type_.startswith("kubernetes:") and not type_.startswith("kubernetes:helm.sh"):
        patterns.append(OF_EVERY_OBJECT)
    return [path for path in paths if any(re.fullmatch(pattern, path) for pattern in patterns)]


def shrunk(type_: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The property that can only grow, where it is to get smaller: a number, or a range that leaves addresses out."""
    path = SHRINKING.get(type_, "")
    if path not in old or path not in new:
        return []
    if isinstance(old[path], str):
        ranges = IPv4Network(old[path]), IPv4Network(new[path])
        return [] if ranges[0].subnet_of(ranges[1]) else [path]
    return [path] if new[path] < old[path] else []


def refused(type_: str, paths: list[str]) -> list[str]:
    """Those of the changed paths that the cloud's API refuses to change."""
    pattern = IMMUTABLE.get(type_)
    return [path for path in paths if pattern and re.fullmatch(pattern, path)]
