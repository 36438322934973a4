"""How is it asked for? The command `compress`."""
