"""How does the command speak? Progress, signals, quantities, what goes to standard output."""
