"""Finds the reasons why the same job differs from run to run."""
