"""State machine of a job, without a clock, threads or files."""
