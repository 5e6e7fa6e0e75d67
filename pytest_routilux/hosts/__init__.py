"""Other hosts: jobs in fresh interpreters and forked processes."""
