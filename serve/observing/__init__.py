"""Time, counts and traces of what happens, by the names that serve/telemetry.py lists."""
