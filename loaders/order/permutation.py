"""The order of an epoch as arithmetic: position -> sample, a permutation of [0, N) that is never stored as a list.

The sample numbers, shifted cyclically, are cut into blocks of `block` consecutive samples. A Feistel network permutes
the blocks, which are dealt in rows to `lanes` lanes. Each lane reads its blocks one after another and permutes the
samples within each. Position p is lane `p mod lanes`, time `p div lanes`. Neighbouring positions are therefore in
different blocks, and only one block per lane is in use at a time. Each lane starts at its own phase in its first block,
so that the lanes do not all change blocks at once; the part before the phase is a run of its own, read last. Samples
that do not fill a row of blocks are cut into one shorter run per lane, all of equal size. The last samples, fewer than
`lanes`, follow one by one.

docs/format.md specifies every step. Only integers are used, so every Python, numpy and machine computes the same order.
Cycle-walking Feistel networks: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002); the mixer is the
finaliser of splitmix64 (Steele, Lea and Flood, 2014).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dray.loaders.lazy import lazy

ALGORITHM = "feistel-lanes-1"  # name of this order in cursors; any change of the order needs another name
ROUNDS = 4
BLOCK_BYTES = 1 << 20  # target size of a block: a good request to object storage
LIVE_FRACTION = 50  # at most 1/50 of all samples are in blocks that are in use at a time
_GOLDEN = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


def choose_block(num_samples: int, lanes: int, sample_bytes: float) -> int:
    """Returns the number of samples in a block: enough for a good request, few enough that the order stays well mixed.

    Args:
        num_samples: Number of samples in an epoch.
        lanes: Number of lanes of the order.
        sample_bytes: Mean size, in bytes, of what is read of a sample.
    """
    wanted = int(BLOCK_BYTES // max(sample_bytes, 1.0))
    return max(1, min(wanted, num_samples // (LIVE_FRACTION * lanes)))


@dataclass(frozen=True)
class Order:
    """The order of one epoch.

    Attributes:
        num_samples: Number of samples, N.
        lanes: Number of lanes; consecutive positions take their samples from the lanes in turn.
        block: Number of consecutive samples in a block; reduced if the samples do not fill one block per lane.
        seed: Seed of the permutation, any integer.
        epoch: Number of the epoch, from 0; each has an order of its own.
        shuffle: Whether the order is permuted; if not, position p is sample p.
    """

    num_samples: int
    lanes: int = 1
    block: int = 1
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if min(self.num_samples, self.epoch) < 0 or min(self.lanes, self.block) < 1:
            raise ValueError(f"invalid {self}: num_samples and epoch must be >= 0; lanes and block >= 1")

    def at(self, positions: ArrayLike) -> Ints:
        """Returns the sample number at each position, as int64 in [0, N) in the shape of `positions`.

        Raises:
            IndexError: A position is not in [0, N).
        """
        found = self._checked(positions)
        if not self.shuffle or not found.size:
            return found.copy()
        firsts, _, offsets = self._in_runs(found.ravel())
        return ((firsts + offsets + self._shift) % self.num_samples).reshape(found.shape)

    def runs(self, positions: ArrayLike) -> tuple[Ints, Ints]:
        """Returns the run of each position's sample: consecutive samples of one lane, which are read together.

        Returns:
            (n,) int64 first sample and (n,) int64 number of samples of each run; a run may wrap from sample N - 1 to 0.
            Without shuffling each sample is a run of its own.
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
        """Returns, before the shift, first sample and size of each position's run, and the sample's place in the run.

        Runs are of three kinds: blocks in whole rows, one shorter run per lane, and the last samples one by one.
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
        # In its first block a lane has two runs: from its phase on, read first, and up to its phase, read last.
        is_first = row == 0
        start = np.where(is_first & ~wrapped, phase, 0)
        size = np.where(is_first, np.where(wrapped, phase, self._block - phase), self._block)
        salts = _mix(self._salt(2) + (block * 2 + wrapped).astype(np.uint64))
        return block * self._block + start, size, _permute(offset - start, size, salts)

    def _permute_blocks(self, blocks: Ints) -> Ints:
        """Returns the permuted numbers of blocks; numbers that are close together are permuted as one range."""
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
        """Number of rows of whole blocks, one block per lane."""
        return self.num_samples // (self._block * self.lanes)

    @lazy
    def _run(self) -> int:
        """Number of samples in the shorter run of each lane."""
        return self.num_samples // self.lanes - self._rows * self._block

    @lazy
    def _phases(self) -> Ints:
        """(lanes,) int64 place in its first block at which each lane starts."""
        return _permute(np.arange(self.lanes), self.lanes, self._salt(7)) * self._block // self.lanes

    @lazy
    def _shift(self) -> int:
        """Number of samples by which the block boundaries are shifted in this epoch."""
        return int(self._salt(8)[0] % np.uint64(self.num_samples))

    def _salt(self, purpose: int) -> Words:
        """Returns a (1,) word that differs for each seed, epoch and purpose, except by chance."""
        seed = _mix(np.array([self.seed & _U64], np.uint64))
        epoch = _mix(seed + np.array([self.epoch & _U64], np.uint64))
        return _mix(epoch + np.array([purpose * _GOLDEN & _U64], np.uint64))


def _mix(words: Words) -> Words:
    """Returns each word mixed: a bijection in which every bit depends on all bits of the word."""
    words = words + np.uint64(_GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _permute(values: Ints, size: int | Ints, salts: Words) -> Ints:
    """Returns each value's place in the permutation of [0, size) that its salt chooses.

    Args:
        values: (n,) int64 in [0, size).
        size: Size of each value's range, at least 1; one for all, or (n,).
        salts: (1,) uint64 for all values, or (n,).
    """
    sizes = np.asarray(size, np.int64)
    half = ((np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [_mix(salts + np.uint64(round_number)) for round_number in range(ROUNDS)]
    places = _encipher(values.astype(np.uint64), half, mask, keys)
    limit = sizes.astype(np.uint64)
    walking = np.flatnonzero(places >= limit)
    while walking.size:  # the network permutes a power of four >= size: repeat until the place is < size
        picked = [array[walking] if array.size > 1 else array for array in (half, mask, limit, *keys)]
        walked = _encipher(places[walking], picked[0], picked[1], picked[3:])
        places[walking] = walked
        walking = walking[walked >= picked[2]]
    return places.astype(np.int64)


def _encipher(words: Words, half: Words, mask: Words, keys: list[Words]) -> Words:
    """Returns words of 2 * `half` bits after a balanced Feistel network."""
    left, right = words >> half, words & mask
    for key in keys:
        scrambled = right ^ key  # then in place: allocating arrays would cost more than the arithmetic
        scrambled *= np.uint64(0xBF58476D1CE4E5B9)
        scrambled ^= scrambled >> np.uint64(29)
        scrambled *= np.uint64(0x94D049BB133111EB)
        scrambled >>= np.uint64(32)
        scrambled ^= left
        scrambled &= mask
        left, right = right, scrambled
    return (left << half) | right
