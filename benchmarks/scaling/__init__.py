"""What a dataset of a billion samples takes: parts of `benchmarks/scale.py`."""
