"""The inputs of a build: files, fingerprints, transforms and encoders."""
