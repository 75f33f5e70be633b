"""Pickles that are read without executing code from them."""
