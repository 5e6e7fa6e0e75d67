"""Scenarios of routilux, as tests that print reports: `pytest showcase/ -v`."""
