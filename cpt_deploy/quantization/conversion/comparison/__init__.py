"""Compare a prepared network with the original one, which runs with its hooks."""
