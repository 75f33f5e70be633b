"""Strict parsers of JSON records, Parquet tables and Arrow columns from untrusted stores."""
