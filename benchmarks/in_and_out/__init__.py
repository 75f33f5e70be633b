"""The parts of benchmarks/ray_data.py."""
