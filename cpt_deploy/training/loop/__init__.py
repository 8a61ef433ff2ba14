"""One run from its first step to its last: data, model, optimizer, the loop, and the end."""
