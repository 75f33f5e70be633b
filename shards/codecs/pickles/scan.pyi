"""How a pickle may be read, from one look at its opcodes; see scan.c."""

from typing import Final, Literal

WILD: Final = 0
"""By the machine of `pickles.unpickle` alone."""
PLAIN: Final = 1
"""By `pickle.loads`: it names nothing."""
TAME: Final = 2
"""By the C unpickler, which is to find the names of `pickles.c_unpickler` and no others."""

LONE: Final = 3
"""As TAME; it is no container, but one array or tensor."""

def scan(data: bytes | memoryview, /) -> Literal[0, 1, 2, 3]: ...
