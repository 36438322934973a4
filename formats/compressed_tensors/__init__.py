"""llm-compressor's container."""
