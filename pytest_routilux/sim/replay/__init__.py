"""Saved jobs, run again by the flow of today."""
