"""Clocks: the system's clock, a fake clock, and exact lengths of time."""
