"""What every Kubernetes object of the program is labelled with."""

LABELS = {"app.kubernetes.io/part-of": "tritonfleet", "app.kubernetes.io/managed-by": "pulumi"}
