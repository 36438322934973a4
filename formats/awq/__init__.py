"""AutoAWQ's container."""
