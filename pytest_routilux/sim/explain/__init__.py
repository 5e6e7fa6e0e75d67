"""Turns a finding into a report: cause, timeline and fix."""
