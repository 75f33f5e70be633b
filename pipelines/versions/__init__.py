"""Committing, holding, rolling back and garbage-collecting versions of a dataset."""
