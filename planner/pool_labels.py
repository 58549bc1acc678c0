"""Labels and taints by which pods find their nodes, and by which the GPU operator knows what to do with a node."""

from planner.fleet import Taint

POOL_LABEL = "tritonfleet.io/pool"
NODE_GROUP_LABEL = "tritonfleet.io/node-group"
CAPACITY_LABEL = "tritonfleet.io/capacity-type"
ZONE_LABEL = "topology.kubernetes.io/zone"
MIG_CONFIG_LABEL = "nvidia.com/mig.config"
MIG_STATE_LABEL = "nvidia.com/mig.config.state"
DEVICE_PLUGIN_LABEL = "nvidia.com/gpu.deploy.device-plugin"
DEVICE_PLUGIN_CONFIG_LABEL = "nvidia.com/device-plugin.config"

GPU_RESOURCE = "nvidia.com/gpu"
GPU_TAINT = Taint(key=GPU_RESOURCE, value="present")
# The prefix tells the cluster autoscaler that nodes begin with this taint and lose it by themselves.
MIG_STARTUP_TAINT = Taint(key="startup-taint.cluster-autoscaler.kubernetes.io/mig", value="pending")
