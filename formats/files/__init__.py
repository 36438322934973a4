"""How do bytes lie on disk? Durable writes, strict readers, and where models come from."""
