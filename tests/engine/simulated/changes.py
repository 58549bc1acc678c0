"""Which changes of a resource its cloud makes in place, which it makes by a new resource, and which it refuses."""

import re
from collections.abc import Iterator
from typing import Any, cast

REPLACING = {
    # "Forces new resource" in the documentation of the Terraform provider that pulumi-aws wraps.
    "aws:ec2/launchTemplate:LaunchTemplate": r"name|namePrefix",
    "aws:ec2/placementGroup:PlacementGroup": r"name|strategy|partitionCount|spreadLevel",
    "aws:ec2/securityGroup:SecurityGroup": r"name|namePrefix|vpcId|description",
    "aws:ec2/subnet:Subnet": r"vpcId|cidrBlock|availabilityZone|availabilityZoneId",
    "aws:ec2/vpc:Vpc": r"cidrBlock",
    "aws:efs/fileSystem:FileSystem": r"creationToken|encrypted|kmsKeyId|performanceMode|availabilityZoneName",
    "aws:eks/cluster:Cluster": r"name|roleArn|(kubernetesNetwork|encryption)Config\b.*|bootstrapSelfManagedAddons",
    "aws:eks/nodeGroup:NodeGroup": (
        r"amiType|capacityType|clusterName|diskSize|instanceTypes\b.*|nodeGroupName|nodeGroupNamePrefix|nodeRoleArn"
        r"|subnetIds\b.*|launchTemplate\.(id|name)"
    ),
    "aws:fsx/lustreFileSystem:LustreFileSystem": r"deploymentType|storageType|kmsKeyId|(subnet|securityGroup)Ids\b.*",
    "aws:iam/role:Role": r"name|namePrefix|path",
    "aws:kms/key:Key": r"customerMasterKeySpec|keyUsage",
    "aws:s3/bucket:Bucket": r"bucket|bucketPrefix",
    # "Changes to this field will trigger recreation" or "forces a new resource" in the documentation of the Terraform
    # provider that pulumi-gcp wraps.
    "gcp:compute/network:Network": r"name|project|autoCreateSubnetworks|networkProfile|mtu",
    "gcp:compute/subnetwork:Subnetwork": r"name|project|region|network|purpose",
    "gcp:container/cluster:Cluster": (
        r"name|location|project|network|subnetwork|networkingMode|datapathProvider|defaultMaxPodsPerNode"
        r"|enableMultiNetworking|ipAllocationPolicy\.(?!additional).*|privateClusterConfig\.(enablePrivateNodes|master\w+Block)"
    ),
    "gcp:container/nodePool:NodePool": (
        r"name|namePrefix|cluster|location|project|initialNodeCount|maxPodsPerNode|placementPolicy\b.*"
        r"|queuedProvisioning\b.*|networkConfig\.(additional\w+|createPodRange|podRange|podIpv4CidrBlock)\b.*"
        r"|nodeConfig\.(spot|preemptible|flexStart|serviceAccount|oauthScopes|minCpuPlatform|bootDiskKmsKey"
        r"|guestAccelerators|reservationAffinity|localSsdCount|ephemeralStorageLocalSsdConfig|maxRunDuration"
        r"|shieldedInstanceConfig|advancedMachineFeatures|hostMaintenancePolicy)\b.*"
    ),
    "gcp:filestore/instance:Instance": r"name|location|project|tier|kmsKeyName|networks\b.*",
    "gcp:kms/keyRing:KeyRing": r"name|location|project",
    "gcp:kms/cryptoKey:CryptoKey": r"name|keyRing|purpose",
    "gcp:lustre/instance:Instance": r"instanceId|location|project|network|filesystem|perUnitStorageThroughput|kmsKey",
    "gcp:serviceaccount/account:Account": r"accountId|project",
    "gcp:storage/bucket:Bucket": r"name|location|project",
    # Names and places: what an Azure resource's id is made of.
    "azure-native:containerservice:AgentPool": r"agentPoolName|resourceName|resourceGroupName",
    "azure-native:containerservice:ManagedCluster": r"resourceName|resourceGroupName|location",
    "azure-native:managedidentity:UserAssignedIdentity": r"resourceName|resourceGroupName|location",
    "azure-native:network:Subnet": r"subnetName|virtualNetworkName|resourceGroupName",
    "azure-native:network:VirtualNetwork": r"virtualNetworkName|resourceGroupName|location",
    "azure-native:resources:ResourceGroup": r"resourceGroupName|location",
    "azure-native:storage:BlobContainer": r"containerName|accountName|resourceGroupName",
    "azure-native:storage:FileShare": r"shareName|accountName|resourceGroupName|enabledProtocols",
    "azure-native:storage:StorageAccount": r"accountName|resourceGroupName|location|isHnsEnabled|kind",
    "azure-native:storagecache:AmlFilesystem": r"amlFilesystemName|resourceGroupName|location",
    # Fields that the API server refuses to change, so that pulumi-kubernetes replaces the object.
    "kubernetes:batch/v1:Job": r"spec\.(selector|template|completionMode)\b.*",
    "kubernetes:core/v1:ConfigMap": r"(binaryData|data|immutable)\b.*",
    "kubernetes:core/v1:PersistentVolume": r"spec\.(csi|nfs)\b.*",
    "kubernetes:core/v1:PersistentVolumeClaim": r"spec\.(accessModes|selector|storageClassName|volume\w+)\b.*",
    "kubernetes:core/v1:Service": r"spec\.(clusterIP|type)",
    "kubernetes:storage.k8s.io/v1:StorageClass": r"(parameters|provisioner|reclaimPolicy|volumeBindingMode)\b.*",
    "random:index/randomPassword:RandomPassword": r".*",
}
"""Properties, as patterns of paths, whose change makes a new resource."""

IMMUTABLE = {
    # AKS documentation, "Create node pools", "Add an Azure Spot node pool", "Use GPUs" and "multi-instance GPU node
    # pools": what cannot be changed after creation. azure-native knows it as an ordinary update.
    "azure-native:containerservice:AgentPool": (
        r"vmSize|maxPods|scaleSetPriority|scaleSetEvictionPolicy|spotMaxPrice|gpuInstanceProfile|gpuProfile\b.*"
        r"|availabilityZones\b.*|osDiskType|osDiskSizeGB|vnetSubnetID|enableEncryptionAtHost|enableFIPS"
        r"|kubeletConfig\b.*|linuxOSConfig\b.*"
    ),
    "azure-native:containerservice:ManagedCluster": (
        r"dnsPrefix|nodeResourceGroup|diskEncryptionSetID|networkProfile\.(serviceCidr|dnsServiceIP|podCidr|networkPlugin\w*)"
        r"|apiServerAccessProfile\.(enablePrivateCluster|privateDNSZone)"
    ),
    "azure-native:storagecache:AmlFilesystem": r"sku\b.*|storageCapacityTiB|filesystemSubnet|zones\b.*",
}
"""Properties, as patterns of paths, whose change the cloud's API refuses."""

OF_EVERY_OBJECT = r"apiVersion|kind|metadata\.(name|namespace)"


def changed(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Paths at which two values differ; a list is compared item by item."""
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in sorted({*olds, *news}):
            yield from changed(olds.get(key), news.get(key), f"{path}.{key}" if path else key)
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


def refused(type_: str, paths: list[str]) -> list[str]:
    """Those of the changed paths that the cloud's API refuses to change."""
    pattern = IMMUTABLE.get(type_)
    return [path for path in paths if pattern and re.fullmatch(pattern, path)]
