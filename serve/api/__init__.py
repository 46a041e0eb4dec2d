"""The HTTP surface: one module per resource, and what they share."""
