"""Indexing tars that other programs wrote, in place."""
