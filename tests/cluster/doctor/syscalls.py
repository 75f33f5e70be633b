"""Run a program to which the kernel refuses system calls, as some file systems do: link() on exFAT, fsync() on FUSE.

`python -m tests.cluster.doctor.syscalls link,linkat EPERM PROGRAM ARGUMENTS...` installs a seccomp filter and becomes
the program; it works without root. Linux on x86-64 and AArch64 only.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"link": 86, "linkat": 265, "fsync": 74},
    "aarch64": {"linkat": 37, "fsync": 82},
}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: load a word, jump if it equals a constant, return
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # the second with an errno in its low half
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2


def is_supported() -> bool:
    return sys.platform == "linux" and platform.machine() in NUMBERS


def refuse(calls: list[str], reason: int) -> None:
    """Have the kernel answer these calls of this process, and of all that it becomes, with an error."""
    known = NUMBERS[platform.machine()]
    numbers = [known[call] for call in calls if call in known]
    code = [(LOAD, 0, 0, 0)]  # the number of the call
    code += [(EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | reason)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, ctypes.c_char_p(header), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse(sys.argv[1].split(","), getattr(errno, sys.argv[2]))
    os.execv(sys.argv[3], sys.argv[3:])
