"""How large is it? Second moments of inputs, and errors."""
