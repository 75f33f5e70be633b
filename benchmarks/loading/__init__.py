"""The contestants of `benchmarks/load.py`, one a file, and the race between them."""
