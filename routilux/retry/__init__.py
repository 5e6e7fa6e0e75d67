"""Retry policies: strategies, options and exact backoff."""
