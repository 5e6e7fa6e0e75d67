"""Turns a problem that a simulation found into a report with cause, timeline and fix."""
