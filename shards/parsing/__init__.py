"""Strict parsers of JSON records, Parquet tables and Arrow columns: never trust who made them."""
