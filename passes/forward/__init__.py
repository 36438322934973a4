"""How does text run through it? Sequences, hidden states, statistics, scores."""
