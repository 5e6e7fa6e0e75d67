"""Runs jobs: the loop, the drivers of steps, and the objects that a runtime's jobs share."""
