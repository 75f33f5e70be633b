"""Versions written from samples that come in order: from a program, a function, or Ray Data."""
