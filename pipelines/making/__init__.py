"""Versions of the samples that a function makes of inputs."""
