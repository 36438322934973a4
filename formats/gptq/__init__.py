"""AutoGPTQ's container, and GPTQModel's."""
