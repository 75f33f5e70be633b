"""What a dataset is on storage: store, tar, index, snapshot. No Ray, no torch."""
