"""Lower a trained model to its integer graph: one module for each kind of operation."""
