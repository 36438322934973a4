"""Which parameters? Scales and zero points of the least weighted error."""
