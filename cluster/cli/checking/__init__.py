"""Commands that check a place or measure a dataset and change neither."""
