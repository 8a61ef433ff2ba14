"""Commands that train networks, look at runs, and export them."""
