"""Runs jobs: the loop, the drivers and the threads."""
