"""Simulates jobs: runs a flow with a crash at each possible point, and checks each result."""
