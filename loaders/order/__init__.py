"""The order of samples in an epoch and the position in it, as pure functions."""
