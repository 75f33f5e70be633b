"""Random numbers that depend on the sample alone, so that a task that runs again makes the same bytes."""

import numpy as np
from xxhash import xxh3_128_intdigest


def rng_of(seed: int, key: str) -> np.random.Generator:
    """Returns a generator of random numbers (Philox) that depends on nothing but the seed and the key of a sample."""
    return np.random.Generator(np.random.Philox(key=xxh3_128_intdigest(f"{seed}:{key}".encode())))
