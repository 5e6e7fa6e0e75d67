"""Virtual time in a test: the frozen clock, and handlers that wait in real time."""
