"""Faults that a test injects into jobs."""
