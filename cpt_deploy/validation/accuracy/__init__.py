"""How accurate a model is and how sure that is: intervals, paired tests, references, and single samples."""
