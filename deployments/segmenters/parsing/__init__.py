"""Regions from a human parser: every pixel has a label, labels by name make the region."""
