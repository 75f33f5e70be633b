"""Samples by number: their bytes, read from local or remote shards and checked against the index."""
