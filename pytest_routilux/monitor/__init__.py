"""Assertions about jobs, and comparisons of jobs in words."""
