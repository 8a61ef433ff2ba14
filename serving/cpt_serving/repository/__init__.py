"""Which models and versions are served, and how they are loaded, replaced and unloaded under way."""
