"""What can the result do? Tasks of lm-eval, and questions out of a file."""
