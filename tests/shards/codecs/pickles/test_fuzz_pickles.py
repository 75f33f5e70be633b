"""Mutated and spliced pickles, good and hostile, give a value or RefusedError, and nothing else."""

import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from dray.shards.codecs.pickles.c_unpickler import scan
from tests.shards.codecs.pickles.test_promises import check_alike
from tests.shards.codecs.pickles.test_unpickle import ARRAYS, PROTOCOLS, TENSORS
from tests.support.hostile_pickles import HOSTILE
from tests.support.pickles import GOOD, LIES, OTHERS, UNKNOWN_PICKLES

SECONDS = 60
OPCODES = bytes(range(0x80, 0x99)) + b"().0125BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}"

FUZZER = """
    import pickle, random, resource, sys
    from dray.shards.codecs.pickles.unpickle import loads
    from dray.shards.errors import RefusedError
    samples = pickle.load(sys.stdin.buffer)
    loads(pickle.dumps([__import__("numpy").zeros(1), __import__("torch").zeros(1)]))
    for sample in samples[:200]:
        try: loads(sample)
        except RefusedError: pass
    events = []
    watched = ("import", "exec", "compile", "os.", "open", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.")
    sys.addaudithook(lambda event, _: events.append(event) if event.startswith(watched) else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = refused = 0
    for number, sample in enumerate(samples):
        try:
            loads(sample)
            read += 1
        except RefusedError:
            refused += 1
        except BaseException as exc:
            print("other exception", type(exc).__name__, number, sample)
            sys.exit(1)
        if events:
            print("audit events", events, number, sample)
            sys.exit(1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(read, refused, grown)
"""


def sound() -> list[bytes]:
    """Small valid pickles."""
    values = [*GOOD.values(), *OTHERS.values(), *TENSORS.values(), *ARRAYS.values()]
    good = [pickle.dumps(value, protocol) for value in values for protocol in PROTOCOLS]
    return [data for data in good if len(data) < 4000]


def pool() -> list[bytes]:
    """Small pickles to damage."""
    return sound() + [
        data for data in (*HOSTILE.values(), *UNKNOWN_PICKLES.values(), *LIES.values()) if 0 < len(data) < 4000
    ]


def damaged(rng: random.Random, samples: list[bytes]) -> bytes:
    """A sample after some changes of bytes and opcodes, cuts, and pieces of other samples."""
    data = bytearray(rng.choice(samples))
    for _ in range(rng.randint(1, 5)):
        at, kind = rng.randrange(len(data)), rng.random()
        if kind < 0.35:
            data[at] = rng.choice(OPCODES)
        elif kind < 0.55:
            data[at] = rng.randrange(256)
        elif kind < 0.65:
            data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 1 << 16, (1 << 31) - 1, (1 << 32) - 1)))
        elif kind < 0.85:
            other = rng.choice(samples)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randint(1, 60)]
        else:
            del data[at : at + rng.randint(1, 8)]
        data = data or bytearray(b".")
    if len(data) > 11 and data[2:3] == b"\x95" and rng.random() < 0.8:
        data[3:11] = struct.pack("<Q", len(data) - 11)
    return bytes(data)


def opcodes(data: bytes) -> list[bytes]:
    """A pickle's opcodes with their arguments, without frames, whose lengths would be wrong after changes."""
    starts = [found[2] for found in pickletools.genops(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True) if data[start] != 0x95]


def rearranged(rng: random.Random, samples: list[list[bytes]]) -> bytes:
    """A sample with some opcodes omitted, repeated, exchanged, or taken from another sample."""
    words = list(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = rng.randrange(1, len(words)), rng.random()
        if kind < 0.15 and len(words) > 3:
            del words[at]
        elif kind < 0.3:
            words.insert(at, words[rng.randrange(1, len(words))])
        elif kind < 0.5:
            words[at] = rng.choice(rng.choice(samples)[1:])
        elif kind < 0.7:
            words[at] = b"h%c" % rng.randrange(12)
        elif kind < 0.8:
            words[at] = bytes((*words[at][:-1], rng.randrange(256)))
        else:
            other = rng.choice(samples)
            start = rng.randrange(1, len(other))
            words[at:at] = other[start : start + rng.randint(1, 30)]
    return b"".join(words[:-1]) + b"."


def count_admitted(seed: int, num_samples: int) -> int:
    """The number of rearranged samples that the scan admits; each is checked against the machine."""
    rng, samples = random.Random(seed), [opcodes(data) for data in sound() if scan(data)]
    return sum(check_alike(rearranged(rng, samples)) for _ in range(num_samples))


def fuzz(seed: int, num_samples: int) -> tuple[int, int, int]:
    """How many samples of a seed are read and refused, and the kB by which the process grew."""
    rng, samples, words = random.Random(seed), pool(), [opcodes(data) for data in sound() if scan(data)]
    half = num_samples // 2
    batch = [damaged(rng, samples) for _ in range(half)] + [rearranged(rng, words) for _ in range(half)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FUZZER)], input=pickle.dumps(batch), capture_output=True, timeout=240
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-3000:]!r} {done.stderr[-3000:]!r}"
    read, refused, grown = map(int, done.stdout.split()[-3:])
    return read, refused, grown


def test_some_damage_is_read_or_refused() -> None:
    """A fixed seed; some of its samples are still valid."""
    read, refused, grown = fuzz(7, 3000)
    assert read > 30
    assert refused > 1000
    assert grown < 300_000


def test_rearranged_pickles_are_read_as_by_the_machine() -> None:
    """A fixed seed; the scan admits many of its samples."""
    assert count_admitted(7, 3000) > 100


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_minute_of_rearranged_pickles_is_read_as_by_the_machine() -> None:
    """Other samples every time; a failure names the seed. DRAY_FUZZ_SEED repeats one."""
    for seed in seeds():
        assert count_admitted(seed, 20_000) > 700, f"seed {seed}"


def seeds() -> Iterator[int]:
    """The requested seed, or new ones for a minute."""
    if given := os.environ.get("DRAY_FUZZ_SEED"):
        yield int(given)
        return
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        yield seed


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_minute_of_damage_is_read_or_refused() -> None:
    """Other samples every time; a failure names the seed. DRAY_FUZZ_SEED repeats one."""
    for seed in seeds():
        read, _, grown = fuzz(seed, 20_000)
        assert read > 100, f"seed {seed}"
        assert grown < 300_000, f"seed {seed}"
