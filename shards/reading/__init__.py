"""Reads samples by number from local or remote shards, and checks their bytes against the index."""
