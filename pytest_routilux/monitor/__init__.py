"""Assertions about jobs, and differences between jobs in words."""
