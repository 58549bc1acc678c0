"""OpenAI-compatible HTTP in front of Triton's `tensorrt_llm` model."""
