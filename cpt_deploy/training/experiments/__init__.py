"""More than one run: grids of trials, comparison of finished runs, curves over seeds, the range test."""
