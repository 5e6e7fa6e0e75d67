"""Child processes in which a test runs jobs: fresh interpreters and forked processes."""
