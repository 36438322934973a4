"""What else is asked of a model? One file a command."""
