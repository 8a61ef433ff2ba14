"""The served models and versions, and loading, replacing and unloading them while the server runs."""
