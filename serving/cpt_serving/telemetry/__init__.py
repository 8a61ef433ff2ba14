"""Observability of the server: metrics, access log, server log and traces."""
