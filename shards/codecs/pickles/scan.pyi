"""How a pickle may be read, from one pass over its opcodes; see scan.c."""

from typing import Final, Literal

UNKNOWN: Final = 0
"""Only by `pickles.machine`: it is malformed, or of a form that the scan does not know."""
NO_NAMES: Final = 1
"""By `pickle.loads`: it names nothing."""
KNOWN_NAMES: Final = 2
"""By a C unpickler that finds the names of `pickles.c_unpickler` and no others."""
SINGLE_ARRAY: Final = 3
"""As KNOWN_NAMES; the value is one array or tensor."""

def scan(data: bytes | memoryview, /) -> Literal[0, 1, 2, 3]: ...
