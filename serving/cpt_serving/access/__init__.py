"""API keys, and what each is good for."""
