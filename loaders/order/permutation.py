"""The order of an epoch as arithmetic: position -> sample, a permutation of [0, N) that is never written down.

The sample numbers, shifted cyclically, are cut into blocks of `block` consecutive samples. A Feistel network permutes
the blocks, which are dealt in rows to `lanes` lanes. Lane j reads its blocks one after another, each in an order of its
own, and position p is lane `p mod lanes`, time `p div lanes`: so neighbouring positions lie in different blocks,
and only one block of each lane is in use at a time. Each lane starts at its own phase inside its first block, so that
lanes do not change blocks all at once; the part before it is a run of its own, read last. What does not fill a row is
cut again into one equal shorter run a lane, and the last samples, fewer than lanes, follow singly.

docs/format.md specifies every step. Integers only: the same order from every Python, numpy and machine. Cycle-walking
Feistel networks: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002); the mixer is the finaliser of
splitmix64 (Steele, Lea and Flood, 2014).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dray.loaders.lazy import lazy

ALGORITHM = "feistel-lanes-1"  # the id of this order in a cursor; another order needs another one
ROUNDS = 4
BLOCK_BYTES = 1 << 20  # of the parts that are read; what a request to object storage should fetch at least
LIVE_FRACTION = 50  # at most one in so many samples lies in a block that is in use
_GOLDEN = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


def choose_block(num_samples: int, lanes: int, sample_bytes: float) -> int:
    """Samples a block: as many as make a good request, as long as few of all samples are in use at a time.

    Args:
        num_samples: N, of the dataset.
        lanes: Of the order.
        sample_bytes: The mean size of what is read of a sample.
    """
    wanted = int(BLOCK_BYTES // max(sample_bytes, 1.0))
    return max(1, min(wanted, num_samples // (LIVE_FRACTION * lanes)))


@dataclass(frozen=True)
class Order:
    """One epoch's order.

    Attributes:
        num_samples: N.
        lanes: Lines of blocks that are read side by side; a batch takes one sample of each in turn.
        block: Consecutive samples that are read together; less where so many do not fit each lane once.
        seed: Any integer.
        epoch: From 0; each has its own order.
        shuffle: Whether to permute at all: else position p is sample p.
    """

    num_samples: int
    lanes: int = 1
    block: int = 1
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if min(self.num_samples, self.epoch) < 0 or min(self.lanes, self.block) < 1:
            raise ValueError(f"an order of no kind: {self}")

    def at(self, positions: ArrayLike) -> Ints:
        """The sample number at each position: (n,) of any positions in [0, N) -> (n,) int64 in [0, N).

        Raises:
            IndexError: A position is outside.
        """
        found = self._checked(positions)
        if not self.shuffle or not found.size:
            return found.copy()
        firsts, _, offsets = self._in_runs(found.ravel())
        return ((firsts + offsets + self._shift) % self.num_samples).reshape(found.shape)

    def runs(self, positions: ArrayLike) -> tuple[Ints, Ints]:
        """What is read together with the sample at each position: neighbouring samples that one lane takes.

        Returns:
            (n,) the first sample of the run and (n,) its number of samples; it goes on from sample N - 1 to 0.
            Without shuffle each sample is a run of its own.
        """
        found = self._checked(positions).ravel()
        if not self.shuffle or not found.size:
            return found.copy(), np.ones_like(found)
        firsts, sizes, _ = self._in_runs(found)
        return (firsts + self._shift) % self.num_samples, sizes

    def _checked(self, positions: ArrayLike) -> Ints:
        found = np.asarray(positions, np.int64)
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < self.num_samples:
            raise IndexError(f"positions {found.min()} to {found.max()} of an epoch of {self.num_samples} samples")
        return found

    def _in_runs(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Before the shift, of each position's run the first sample and the size, and the sample's place in it.

        There are three kinds: those of whole rows of blocks, the shorter runs, and the last few samples.
        """
        in_blocks = self._rows * self._block * self.lanes
        in_runs = in_blocks + self._run * self.lanes
        if positions.max() < in_blocks:
            return self._of_blocks(positions)
        found = np.empty((3, len(positions)), np.int64)
        kind = np.searchsorted(np.array([in_blocks, in_runs]), positions, side="right")
        for number, of_kind in enumerate((self._of_blocks, self._of_runs, self._of_tail)):
            chosen = kind == number
            if chosen.any():
                found[:, chosen] = of_kind(positions[chosen])
        return found[0], found[1], found[2]

    def _of_blocks(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        time, lane = np.divmod(positions, self.lanes)
        phase = self._phases[lane]
        time += phase
        wrapped = time >= self._rows * self._block
        time -= wrapped * (self._rows * self._block)
        row, offset = np.divmod(time, self._block)
        block = self._permute_blocks(row * self.lanes + lane)
        # In its first block a lane has two runs: from its phase on, which it reads first, and what lies before, last.
        is_first = row == 0
        start = np.where(is_first & ~wrapped, phase, 0)
        size = np.where(is_first, np.where(wrapped, phase, self._block - phase), self._block)
        salts = _mix(self._salt(2) + (block * 2 + wrapped).astype(np.uint64))
        return block * self._block + start, size, _permute(offset - start, size, salts)

    def _permute_blocks(self, blocks: Ints) -> Ints:
        """The place of each of some blocks; where they lie close together, worked out once for each between them."""
        first, last = int(blocks.min()), int(blocks.max())
        are_close = last - first < len(blocks)
        places = _permute(np.arange(first, last + 1) if are_close else blocks, self._rows * self.lanes, self._salt(1))
        return places[blocks - first] if are_close else places

    def _of_runs(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        begin = self._rows * self._block * self.lanes
        time, lane = np.divmod(positions - begin, self.lanes)
        run = _permute(lane, self.lanes, self._salt(3))
        place = _permute(time, self._run, _mix(self._salt(5) + run.astype(np.uint64)))
        return begin + run * self._run, np.full_like(run, self._run), place

    def _of_tail(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        begin = (self._rows * self._block + self._run) * self.lanes
        sample = begin + _permute(positions - begin, self.num_samples - begin, self._salt(6))
        return sample, np.ones_like(sample), np.zeros_like(sample)

    @lazy
    def _block(self) -> int:
        return max(1, min(self.block, self.num_samples // self.lanes))

    @lazy
    def _rows(self) -> int:
        """Rows of whole blocks, one a lane."""
        return self.num_samples // (self._block * self.lanes)

    @lazy
    def _run(self) -> int:
        """Samples of the shorter run of each lane."""
        return self.num_samples // self.lanes - self._rows * self._block

    @lazy
    def _phases(self) -> Ints:
        """(lanes,) where each lane starts in its first block."""
        return _permute(np.arange(self.lanes), self.lanes, self._salt(7)) * self._block // self.lanes

    @lazy
    def _shift(self) -> int:
        """How far the cuts between blocks are moved this epoch."""
        return int(self._salt(8)[0] % np.uint64(self.num_samples))

    def _salt(self, purpose: int) -> Words:
        """(1,) a word that no other epoch, seed or purpose has (but by chance)."""
        seed = _mix(np.array([self.seed & _U64], np.uint64))
        epoch = _mix(seed + np.array([self.epoch & _U64], np.uint64))
        return _mix(epoch + np.array([purpose * _GOLDEN & _U64], np.uint64))


def _mix(words: Words) -> Words:
    """Each word to another one, all bits of which depend on all of its bits; a bijection."""
    words = words + np.uint64(_GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _permute(values: Ints, size: int | Ints, salts: Words) -> Ints:
    """Each value in [0, size) to its place in a permutation of [0, size) that its salt chooses.

    Args:
        values: (n,) int64.
        size: Of each value's range, at least 1: one for all, or (n,).
        salts: (1,) for all, or (n,).
    """
    sizes = np.asarray(size, np.int64)
    half = ((np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [_mix(salts + np.uint64(round_number)) for round_number in range(ROUNDS)]
    places = _encipher(values.astype(np.uint64), half, mask, keys)
    limit = sizes.astype(np.uint64)
    walking = np.flatnonzero(places >= limit)
    while walking.size:  # the network permutes a power of four at least as large: walk until inside
        picked = [array[walking] if array.size > 1 else array for array in (half, mask, limit, *keys)]
        walked = _encipher(places[walking], picked[0], picked[1], picked[3:])
        places[walking] = walked
        walking = walking[walked >= picked[2]]
    return places.astype(np.int64)


def _encipher(words: Words, half: Words, mask: Words, keys: list[Words]) -> Words:
    """A balanced Feistel network over words of twice `half` bits."""
    left, right = words >> half, words & mask
    for key in keys:
        scrambled = right ^ key  # then in place: new arrays would take longer than the arithmetic
        scrambled *= np.uint64(0xBF58476D1CE4E5B9)
        scrambled ^= scrambled >> np.uint64(29)
        scrambled *= np.uint64(0x94D049BB133111EB)
        scrambled >>= np.uint64(32)
        scrambled ^= left
        scrambled &= mask
        left, right = right, scrambled
    return (left << half) | right
