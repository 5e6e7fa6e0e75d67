"""Stores and the saved forms of jobs: rows, snapshots, versions, digests and signatures."""
