"""Networks as graphs: traced by `torch.fx`, or captured by `torch.export` where operations stay in float."""
