"""Experiments of several runs: grids of trials, comparison of finished runs, curves over seeds, the range test."""
