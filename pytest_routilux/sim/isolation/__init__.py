"""Runs simulated hosts in forked processes."""
