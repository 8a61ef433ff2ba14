"""Reporting of a run: its plan, progress, profile, step costs and final report."""
