"""Assertions about recorded jobs, and texts that explain differences between jobs."""
