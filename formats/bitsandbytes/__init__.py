"""bitsandbytes' container, as transformers saves it."""
