"""Building a dataset: survey the inputs, announce the plan, pack shards, write the manifest."""
