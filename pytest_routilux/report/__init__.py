"""Reports of single tests and of the whole pytest session."""
