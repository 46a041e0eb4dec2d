"""Benchmarks: run by `sm4ll bench ...`, never asserted on."""
