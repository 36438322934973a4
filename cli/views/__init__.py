"""What is there to see? Results as people read them: tables on standard output."""
