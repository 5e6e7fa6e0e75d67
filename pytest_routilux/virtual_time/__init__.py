"""Virtual time in a test, and checks for waits in real time."""
