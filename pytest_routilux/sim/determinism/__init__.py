"""Finds out why two runs of one job differ."""
