"""Clocks: the system's, a fake one, and exact lengths of time."""
