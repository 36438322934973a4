"""llama.cpp's container."""
