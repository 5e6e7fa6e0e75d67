"""Saved forms of the values in jobs and commits."""
