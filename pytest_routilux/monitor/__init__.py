"""Assertions about recorded jobs, and explanations of differences."""
