"""Accuracy of a model and its uncertainty: intervals, paired tests, references, and single samples."""
