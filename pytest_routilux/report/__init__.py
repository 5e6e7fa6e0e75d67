"""Reports of tests and of the session."""
