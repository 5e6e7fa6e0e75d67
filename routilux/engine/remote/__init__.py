"""Steps in other processes: sent by `sender`, run by `run`, in contact by `channel`."""
