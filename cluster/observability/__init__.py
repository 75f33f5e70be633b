"""Logs and metrics of the command line; docs/observability.md describes them."""
