"""Manifests and scripts that start Ray with dray on it: KubeRay, Slurm, Docker Compose, and the image itself.

Each file renders one of them from a `Deployment`. YAML is dumped from plain values and shell scripts are a fixed text
behind quoted variables, so that no option, whatever its characters, becomes anything but a value.
"""
