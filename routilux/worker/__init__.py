"""Runs the jobs of a store: the worker, its leases, its capacity and its signals."""
