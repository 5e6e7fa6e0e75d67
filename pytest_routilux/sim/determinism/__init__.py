"""Finds what makes a job differ from run to run."""
