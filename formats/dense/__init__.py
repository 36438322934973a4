"""Plain safetensors in a Hugging Face directory."""
