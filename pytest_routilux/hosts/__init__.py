"""Child processes in which a test runs jobs."""
