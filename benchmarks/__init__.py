"""Benchmarks that run a peer in the same call: `python -m benchmarks.NAME`."""
