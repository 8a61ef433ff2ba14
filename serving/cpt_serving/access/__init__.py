"""API keys, and access control by their scopes."""
