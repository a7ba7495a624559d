"""Benchmarks; each prints a table, writes JSON and runs as `python -m rlkit.bench.NAME`."""
