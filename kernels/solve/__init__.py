"""Which codes? GPTQ and what goes with it."""
