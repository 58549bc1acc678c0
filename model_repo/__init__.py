"""The Triton model repository: upstream's model names and tensors, rendered from a plan."""
