"""The directory of a run: its files, checkpoints, lock and log, and loading of finished runs."""
