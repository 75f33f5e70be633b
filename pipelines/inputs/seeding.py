"""Random numbers that depend on the sample alone, so that a task that runs again makes the same bytes."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from xxhash import xxh3_128_intdigest

RNG = "rng"  # a parameter of this name gets random numbers


def takes_rng(function: Callable[..., Any]) -> bool:
    """Returns whether a function of the user, or the instances of a class, have a parameter `rng`."""
    try:
        return RNG in inspect.signature(function.__call__ if inspect.isclass(function) else function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def rng_of(seed: int, key: str) -> np.random.Generator:
    """Returns a generator of random numbers (Philox) that depends on nothing but the seed and the key of a sample."""
    return np.random.Generator(np.random.Philox(key=xxh3_128_intdigest(f"{seed}:{key}".encode())))
