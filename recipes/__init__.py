"""What is to be done? Recipes, their plan, and their run. The `*.yaml` here are the bundled recipes."""
