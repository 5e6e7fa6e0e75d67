"""Orders of concurrent work: which are tried, what may be left out, and what a difference means."""
