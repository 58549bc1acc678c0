"""Pods on this machine, run from their manifests as a kubelet runs them: volumes, namespaces, users, probes, signals.

A container gets mount, PID, IPC, UTS and network namespaces of its own, in which every path of its manifest is that
very path: this machine's file system stands in for the image, with the pod's volumes mounted over it. What the
manifest says of commands, environment, users, capabilities, a read-only root, probes, hooks and grace periods is done.
Not imitated: images, cgroups (resource requests and limits), seccomp profiles, scheduling and network policies.
"""
