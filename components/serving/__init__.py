"""Engine builds and Triton groups: what turns a plan into models that answer, on any cloud's cluster."""

from components.serving.serving import Serving, ServingArgs

__all__ = ["Serving", "ServingArgs"]
