"""The routines of the showcase."""
