"""What can be asked for? One file a group of commands."""
