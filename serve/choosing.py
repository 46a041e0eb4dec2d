"""Chooses the version of a request: named, pinned, by experiment, or the default."""
