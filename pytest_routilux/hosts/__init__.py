"""Runs jobs on other hosts: fresh interpreters and forked processes."""
