"""The door to a control plane, and what goes through it."""
