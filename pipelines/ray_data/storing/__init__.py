"""From the blocks of a Ray Data dataset to stored shards. Its modules import Ray."""
