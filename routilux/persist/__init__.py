"""Stores for jobs, and the saved forms of jobs."""
