"""An independent model of the engine's rules, which checks every simulated run."""
