"""The system's clock, a fake clock for tests, and exact lengths of time."""
