"""OpenAI-compatible HTTP in front of Triton's `tensorrt_llm` model."""

import os

# gRPC's newer client hands each message through one more thread: 50 µs of processor time a message, 33 µs without.
# Read once, when grpc is imported.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
