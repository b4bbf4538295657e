"""Measurements with a peer beside us; `python -m benchmarks.NAME` runs one."""
