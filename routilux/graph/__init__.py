"""The parts of a flow: routines, connections, payloads and the plan that the engine reads."""
