"""Simulates a job with a crash at each possible point."""
