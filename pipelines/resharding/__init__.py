"""Copying the samples of a dataset, or of anyone's tars, into shards of another size, order, choice or encoding."""
