"""Tokenizers, as GGUF and as Hugging Face say them."""
