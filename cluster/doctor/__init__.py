"""What `dray doctor` checks: this machine, a store, and the nodes of a Ray cluster."""
