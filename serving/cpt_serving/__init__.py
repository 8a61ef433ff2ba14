"""The FastAPI app that serves bundles. Never imports torch."""
