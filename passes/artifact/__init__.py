"""Is it what was meant? Written, compared, recorded."""
