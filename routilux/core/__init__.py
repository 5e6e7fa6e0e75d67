"""State machine of a job: its commits, state and schedule; no clock, no threads, no files."""
