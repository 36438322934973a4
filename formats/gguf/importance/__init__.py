"""llama.cpp's importance matrices: how much of each input a matrix was seen to multiply."""
