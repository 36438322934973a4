"""Who vouches for an artifact? Needs the extra `sign`."""
