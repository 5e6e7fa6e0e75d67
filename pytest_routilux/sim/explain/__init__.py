"""Turns a finding of a simulation into a report."""
