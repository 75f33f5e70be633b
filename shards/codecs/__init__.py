"""Parts as bytes and as values: readers of all formats, and writers of those that `encode=` makes."""
