"""Showing the results of commands, through `cpt_cli.output`."""
