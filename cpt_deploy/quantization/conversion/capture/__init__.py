"""Make graphs of networks: traced by `torch.fx`, or captured by `torch.export` if operations stay in float."""
