"""What routilux is for, as tests that print what happened: `pytest showcase/ -v`."""
