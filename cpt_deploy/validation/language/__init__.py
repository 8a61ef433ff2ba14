"""Validation of language models: every integer, and perplexity of the trained and the served model."""
