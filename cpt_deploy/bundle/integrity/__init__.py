"""Integrity of bundles: checksums, signatures, evidence, consistency of files, and atomic writing."""
