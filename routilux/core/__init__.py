"""The machine that runs a job: values in, values out; no clock, no threads, no files."""
