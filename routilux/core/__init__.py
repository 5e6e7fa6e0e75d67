"""State machine of a job: commits, state and schedule, without a clock, threads or files."""
