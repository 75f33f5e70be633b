"""Parts as bytes and as values: both directions of every format."""
