"""Runs simulated hosts in other processes than the test's."""
