"""Runs simulated hosts in child processes of the test's process."""
