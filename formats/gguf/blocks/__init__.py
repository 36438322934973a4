"""The tensor types of GGML."""
