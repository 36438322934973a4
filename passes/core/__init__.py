"""What is a pass? Its contract, its run, its journal, and the model as it stands."""
