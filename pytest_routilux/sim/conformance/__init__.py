"""Checks every simulated run against an independent model of the engine's rules."""
