"""What every pass stands on: the sweep, statistics, the journal, the model's skeleton."""
