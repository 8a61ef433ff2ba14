"""Integrity of bundles: signatures, evidence, and consistency of files."""
