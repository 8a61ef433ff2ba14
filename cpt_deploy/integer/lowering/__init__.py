"""From a trained model to its integer graph: one file for each kind of operation that becomes integers."""
