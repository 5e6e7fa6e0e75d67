"""Runs one simulated job on simulated hosts."""
