"""`eks:index:Cluster`, with the children that its users depend on, under the AWS provider that it is given."""

import json
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2, resource_pb2, resource_pb2_grpc

from tests.engine.simulated.wire import REFERENCE, SIGNATURE, UNKNOWN, plain


def construct_cluster(request: Any) -> Any:
    monitor: Any = resource_pb2_grpc.ResourceMonitorStub(grpc.insecure_channel(request.monitorEndpoint))
    inputs = plain(request.inputs)

    def register(type_: str, name: str, parent: str, **options: Any) -> Any:
        return monitor.RegisterResource(
            resource_pb2.RegisterResourceRequest(
                type=type_,
                name=name,
                parent=parent,
                # A component of a real provider hands this on to its children.
                protect=request.protect,
                retainOnDelete=request.retainOnDelete,
                acceptSecrets=True,
                acceptResources=True,
                supportsPartialValues=True,
                **options,
            )
        )

    component = register(
        request.type, request.name, request.parent, providers=request.providers, dependencies=request.dependencies
    )

    def child(type_: str, suffix: str, properties: Mapping[str, Any], *dependencies: str) -> Any:
        struct = struct_pb2.Struct()
        struct.update({key: value for key, value in properties.items() if value is not None})
        name = f"{request.name}-{suffix}"
        options = {"custom": True, "provider": request.providers.get("aws", ""), "object": struct}
        return register(type_, name, component.urn, dependencies=dependencies, **options)

    trust = json.dumps({"Statement": [{"Action": "sts:AssumeRole", "Principal": {"Service": "eks.amazonaws.com"}}]})
    role = child("aws:iam/role:Role", "eksRole-role", {"assumeRolePolicy": trust})
    groups: list[Any] = []
    if not inputs.get("skipDefaultSecurityGroups"):
        vpc = {"vpcId": inputs.get("vpcId")}
        groups.append(child("aws:ec2/securityGroup:SecurityGroup", "eksClusterSecurityGroup", vpc))
    given = {key: inputs.get(key) for key in ("name", "version", "enabledClusterLogTypes", "deletionProtection")}
    subnets: list[Any] = [*(inputs.get("privateSubnetIds") or []), *(inputs.get("subnetIds") or [])]
    access = {key: inputs.get(key) for key in ("endpointPrivateAccess", "endpointPublicAccess", "publicAccessCidrs")}
    security: dict[str, Any] = {"subnetIds": subnets}
    if groups:
        security["securityGroupIds"] = [group.id or UNKNOWN for group in groups]
    security |= {key: value for key, value in access.items() if value is not None}
    key = {"provider": {"keyArn": inputs.get("encryptionConfigKeyArn")}, "resources": ["secrets"]}
    services = {"serviceIpv4Cidr": inputs.get("kubernetesServiceIpAddressRange")}
    properties = given | {"roleArn": _of(role, "arn"), "vpcConfig": security, "kubernetesNetworkConfig": services}
    properties["encryptionConfig"] = key if inputs.get("encryptionConfigKeyArn") else None
    cluster = child("aws:eks/cluster:Cluster", "eksCluster", properties, role.urn, *(group.urn for group in groups))
    # Without a group of its own the cluster has the one that EKS makes.
    own = _of(cluster, "vpcConfig")
    shared = groups[0].id or UNKNOWN if groups else own.get("clusterSecurityGroupId") if cluster.id else UNKNOWN
    issuer = f"https://oidc.simulated/{request.name}" if cluster.id else UNKNOWN
    oidc = child(
        "aws:iam/openIdConnectProvider:OpenIdConnectProvider",
        "oidcProvider",
        {"url": issuer, "clientIdLists": ["sts.amazonaws.com"]},
        cluster.urn,
    )
    reference = {SIGNATURE: REFERENCE, "urn": cluster.urn, "id": cluster.id or UNKNOWN}
    kubeconfig = {"apiVersion": "v1", "kind": "Config", "clusters": [{"name": request.name}]} if cluster.id else UNKNOWN
    state = struct_pb2.Struct()
    state.update(
        {
            "eksCluster": reference,
            "kubeconfig": kubeconfig,
            "kubeconfigJson": json.dumps(kubeconfig) if cluster.id else UNKNOWN,
            "oidcIssuer": issuer.removeprefix("https://"),
            "oidcProviderUrl": issuer,
            "oidcProviderArn": _of(oidc, "arn"),
            "clusterSecurityGroupId": shared,
            "nodeSecurityGroupId": shared,
        }
    )
    monitor.RegisterResourceOutputs(resource_pb2.RegisterResourceOutputsRequest(urn=component.urn, outputs=state))
    return provider_pb2.ConstructResponse(urn=component.urn, state=state)


def _of(response: Any, key: str) -> Any:
    return plain(response.object).get(key, UNKNOWN)
