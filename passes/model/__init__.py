"""What is a model made of? Configuration, skeleton, anatomy, weights, tokenizer."""
