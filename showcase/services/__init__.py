"""The services that the scenarios call, on the loopback, and a web service that runs jobs."""
