"""The directory of a run: its files, checkpoints, lock and log, and reading a finished run back."""
