"""The parts of a flow: routines, connections, payloads and plan."""
