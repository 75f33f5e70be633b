"""The three splits."""

from enum import Enum, auto


class Split(Enum):
    """Names of the splits; each is one dataset."""

    train = auto()
    val = auto()
    test = auto()
