"""What is minimised, token by token? Losses over the vocabulary, and the half of a model that they begin at."""
