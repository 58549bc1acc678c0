"""Pulumi resources from the plan: a cloud's cluster and storage, what the cluster needs, and the models on it."""
