"""Runs jobs: the loop, the drivers of steps, and what the jobs of a runtime share."""
