"""Who runs the result? Facts about engines, and their own answers."""
