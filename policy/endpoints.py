"""Who from outside reaches what, and whether he is asked who he is."""

from collections.abc import Iterator
from typing import Any

from planner.endpoints import OPENAI_PORT, PORTS, is_everyone
from planner.errors import Problem
from policy.pods import containers
from policy.settings import NoSettings
from policy.stack import UNKNOWN, Resource, Stack, at, is_true, items, mapping

_EVERYONE = ("*", "internet", "any")
_INTERNAL = {
    "service.beta.kubernetes.io/aws-load-balancer-scheme": "internal",
    "service.beta.kubernetes.io/aws-load-balancer-internal": "true",
    "networking.gke.io/load-balancer-type": "internal",
    "cloud.google.com/load-balancer-type": "internal",
    "service.beta.kubernetes.io/azure-load-balancer-internal": "true",
}
"""Annotations by which a load balancer has an address of the network only."""

_BLOCK = "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
_COST = "anybody on the internet could use it, and nobody would ask who they are"


def public(resource: Resource, _: NoSettings) -> Iterator[Problem]:
    """What in this one resource lets everyone in."""
    for check in (_kubernetes, _ranges, _control_plane, _objects, _members):
        for what, fix in check(resource):
            yield Problem(key=resource.name, what=what, consequence=_COST, fix=fix)


def without_block(stack: Stack, _: NoSettings) -> Iterator[tuple[Resource, Problem]]:
    """Buckets of S3 that nothing keeps private; what does is a resource of its own."""
    blocks = [
        resource for resource in stack if resource.type == "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
    ]
    blocked = frozenset[str]().union(*(block.dependencies for block in blocks))
    for bucket in stack:
        if bucket.type == "aws:s3/bucket:Bucket" and bucket.urn not in blocked:
            what, fix = "a bucket without a public access block", "give it one with all four settings"
            yield bucket, Problem(key=bucket.name, what=what, consequence=_COST, fix=fix)


Fault = tuple[str, str]
"""What is wrong, and how to mend it."""


def _kubernetes(resource: Resource) -> Iterator[Fault]:
    kind, spec = resource.type.rpartition(":")[2], at(resource.inputs, "spec")
    if not resource.type.startswith("kubernetes:"):
        return
    if kind == "Service" and (way := _way_in(resource)):
        for port in items(spec, "ports"):
            if not _asks_for_a_key(at(port, "targetPort") or at(port, "port")):
                yield (
                    f"port {at(port, 'port')} is public by {way}, and asks nobody for a key",
                    f"publish port {PORTS[OPENAI_PORT]} alone, where the frontend asks for one, or make it internal",
                )
    elif kind == "Ingress":
        rules = [path for rule in items(spec, "rules") for path in items(rule, "http.paths")]
        backends = [at(spec, "defaultBackend"), *(at(path, "backend") for path in rules)]
        ports = [at(backend, "service.port") for backend in backends if backend is not None]
        for port in ports:
            if not _asks_for_a_key(at(port, "name") or at(port, "number")):
                yield f"leads to port {port}, which asks nobody for a key", f"lead to port {PORTS[OPENAI_PORT]} alone"
    elif kind == "NetworkPolicy":
        for rule in items(spec, "ingress"):
            peers = [at(peer, "ipBlock.cidr") for peer in items(rule, "from")]
            ports = [at(port, "port") for port in items(rule, "ports")]
            if any(map(_lets_everyone_in, peers)) and not (ports and all(map(_asks_for_a_key, ports))):
                yield "lets every address in", f"name ranges, or port {PORTS[OPENAI_PORT]} alone"
    for container in containers(resource):
        published = [at(port, "name") for port in items(container, "ports")]
        if OPENAI_PORT in published and "--api-keys" not in items(container, "command"):
            yield "its frontend runs without API keys", "give it --api-keys, as the program does"


def _way_in(service: Resource) -> str | None:
    spec = at(service.inputs, "spec")
    if at(spec, "type") == "LoadBalancer":
        given = mapping(service.inputs, "metadata.annotations")
        inside = any(str(given.get(key)).lower() == value for key, value in _INTERNAL.items())
        return None if inside else "a load balancer"
    if at(spec, "type") == "NodePort":
        return "every node's address"
    return "an external address" if items(spec, "externalIPs") else None


def _asks_for_a_key(port: Any) -> bool:
    return port in (OPENAI_PORT, PORTS[OPENAI_PORT], str(PORTS[OPENAI_PORT]))


def _ranges(resource: Resource) -> Iterator[Fault]:
    """Rules of a network that let every address in."""
    inputs, kind = resource.inputs, resource.type.rpartition(":")[2]
    sources: list[Any] = []
    if kind == "SecurityGroupIngressRule":
        sources = [at(inputs, "cidrIpv4"), at(inputs, "cidrIpv6")]
    elif kind in ("SecurityGroup", "DefaultSecurityGroup", "SecurityGroupRule"):
        rules = items(inputs, "ingress") + ([inputs] if at(inputs, "type") == "ingress" else [])
        lists = ("cidrBlocks", "ipv6CidrBlocks")
        sources = [source for rule in rules for key in lists for source in items(rule, key)]
    elif kind == "Firewall" and at(inputs, "direction") != "EGRESS" and items(inputs, "allows"):
        # Without sources Google lets everyone in.
        named = any(at(inputs, key) for key in ("sourceRanges", "sourceTags", "sourceServiceAccounts"))
        sources = items(inputs, "sourceRanges") if named else ["*"]
    elif kind == "NetworkSecurityGroup":
        for rule in items(inputs, "securityRules"):
            if at(rule, "access") == "Allow" and at(rule, "direction") == "Inbound":
                sources += [at(rule, "sourceAddressPrefix"), *items(rule, "sourceAddressPrefixes")]
    for source in sources:
        if _lets_everyone_in(source):
            yield f"lets {source} in, which is everyone", "name the ranges that need it"


def _control_plane(resource: Resource) -> Iterator[Fault]:
    """A Kubernetes API that every address may try."""
    inputs, fix = resource.inputs, "give cluster.api_cidrs, or none for a private control plane"
    ranges: list[Any] | None = None
    if not inputs:
        return  # a component that its provider makes: its children are judged
    if resource.type in ("eks:index:Cluster", "aws:eks/cluster:Cluster"):
        place = inputs if resource.type.startswith("eks:") else at(inputs, "vpcConfig")
        # Public where nobody says anything, and to everyone.
        if at(place, "endpointPublicAccess") not in (False, "false", UNKNOWN):
            ranges = _given(at(place, "publicAccessCidrs"))
    elif resource.type == "gcp:container/cluster:Cluster":
        networks = at(inputs, "masterAuthorizedNetworksConfig")
        if not is_true(at(inputs, "privateClusterConfig.enablePrivateEndpoint")):
            blocks = items(networks, "cidrBlocks")
            ranges = ["*"] if networks is None else [at(block, "cidrBlock") for block in blocks]
        if at(inputs, "anonymousAuthenticationConfig.mode") not in ("LIMITED", UNKNOWN):
            yield "its control plane answers who does not log in", "set anonymousAuthenticationConfig.mode to LIMITED"
    elif resource.type == "azure-native:containerservice:ManagedCluster":
        access = at(inputs, "apiServerAccessProfile")
        if not is_true(at(access, "enablePrivateCluster")):
            ranges = _given(at(access, "authorizedIPRanges"))
    if ranges is not None and any(map(_lets_everyone_in, ranges)):
        yield "its control plane is open to everyone", fix


def _given(ranges: Any) -> list[Any]:
    return ranges or ["*"] if ranges is not UNKNOWN else []


def _objects(resource: Resource) -> Iterator[Fault]:
    """Object stores that may be read without credentials."""
    inputs = resource.inputs
    if resource.type == _BLOCK:
        settings = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
        if missing := [key for key in settings if not is_true(at(inputs, key))]:
            yield f"leaves out {', '.join(missing)}", "give all four settings"
    elif resource.type == "gcp:storage/bucket:Bucket":
        if at(inputs, "publicAccessPrevention") != "enforced":
            yield "a bucket that may be made public", "set publicAccessPrevention to enforced"
    elif resource.type == "azure-native:storage:StorageAccount":
        if at(inputs, "allowBlobPublicAccess") is not False:
            yield "an account whose containers may be made public", "set allowBlobPublicAccess to false"
    elif resource.type == "azure-native:storage:BlobContainer" and at(inputs, "publicAccess") not in (None, "None"):
        yield "a public container", "set publicAccess to None"


def _members(resource: Resource) -> Iterator[Fault]:
    if resource.type.startswith("gcp:"):
        for member in (at(resource.inputs, "member"), *items(resource.inputs, "members")):
            if member in ("allUsers", "allAuthenticatedUsers"):
                yield f"gives rights to {member}", "name the accounts that need them"


def _lets_everyone_in(source: Any) -> bool:
    if not isinstance(source, str):
        return False
    if source.lower() in _EVERYONE:
        return True
    try:
        return is_everyone(source)
    except ValueError:
        return False  # the cloud's own name of a range
