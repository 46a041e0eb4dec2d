"""Echoes of other servers, each run by `bench gateway` in a process of its own."""
