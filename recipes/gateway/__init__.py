"""Who stands before an engine? Limits, a key, figures and a plain word when it is gone. Needs the extra `gateway`."""
