"""The command line `cpt`: thin commands over `cpt_deploy` and `cpt_serving`; importing it imports neither torch nor onnxruntime."""
