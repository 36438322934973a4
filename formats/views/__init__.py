"""How does one checkpoint look as another? Fitted, cut into matrices, untied, cast."""
