"""The command line `cpt`: thin commands over `cpt_deploy` and `cpt_serving`. Importing it imports nothing heavy."""
