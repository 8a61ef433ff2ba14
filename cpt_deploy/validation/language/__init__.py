"""Validation of language models: every integer, and perplexity of what was trained and what is served."""
