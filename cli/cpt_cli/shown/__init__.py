"""What commands show of results, through `cpt_cli.output`."""
