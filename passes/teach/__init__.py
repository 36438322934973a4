"""Who teaches, and what of it is learned? Teachers, their answers on disk, and what is minimised against them."""
