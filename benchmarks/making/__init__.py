"""The contestants of benchmarks/write.py."""
