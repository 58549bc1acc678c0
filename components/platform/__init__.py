"""What the cluster needs before models can be served: GPU operator, autoscaler, LeaderWorkerSet, namespaces, limits."""

from components.platform.platform import Platform, PlatformArgs

__all__ = ["Platform", "PlatformArgs"]
