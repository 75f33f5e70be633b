"""The table of a race, and what became of the targets."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from loading.race import BIONEMO, CONTESTANTS, COPY, LITDATA, MODULE, PICKLED, TRANSCODED, Rates
from loading.task import BATCH, Task

FASTEST = "fastest rival"
SMALL_BYTES, LARGE_BYTES = 4_000, (100_000, 2_000_000)


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio should come to at least.

    Attributes:
        sizes: Of a sample in bytes, for which it is meant.
        ours: A contestant.
        theirs: The other, or the fastest rival.
        ratio: Of their rates.
        workers: For which it is meant; None: any.
    """

    sizes: tuple[int, ...]
    ours: str
    theirs: str
    ratio: float
    workers: int | None = None

    def is_for(self, task: Task) -> bool:
        """Whether the race tells something about it."""
        return 4 * task.num_floats in self.sizes and self.workers in (None, task.num_workers)


TARGETS = (
    Target((SMALL_BYTES,), PICKLED.name, BIONEMO.name, 10),
    Target((SMALL_BYTES,), TRANSCODED.name, BIONEMO.name, 100),
    Target((SMALL_BYTES,), TRANSCODED.name, LITDATA.name, 4),
    Target((SMALL_BYTES,), MODULE.name, BIONEMO.name, 20, workers=2),
    Target(LARGE_BYTES, TRANSCODED.name, FASTEST, 1),
    Target(LARGE_BYTES, TRANSCODED.name, COPY.name, 0.7),
    Target(LARGE_BYTES, PICKLED.name, FASTEST, 1),
    Target(LARGE_BYTES, PICKLED.name, COPY.name, 0.7),
)


def fastest_rival(rates: Rates) -> str:
    """The name of the one whose median is the highest."""
    rivals = [contestant.name for contestant in CONTESTANTS if not contestant.is_ours and contestant.name in rates]
    return max(rivals, key=lambda name: statistics.median(rates[name]))


def ratio(rates: Rates, ours: str, theirs: str) -> float:
    """The median over the rounds of the ratio inside each."""
    return statistics.median(our / their for our, their in zip(rates[ours], rates[theirs], strict=True))


def print_table(task: Task, rates: Rates) -> None:
    """A line a contestant: samples a second, and the ratio to those of others that count."""
    fastest = fastest_rival(rates)
    columns = {BIONEMO.name: f"/ {BIONEMO.name}", fastest: f"/ {fastest} *", COPY.name: f"/ {COPY.name}"}
    print(f"\n{describe(task)}; batches of {BATCH}, rounds: {len(rates[COPY.name])}; * the fastest rival that ran")
    print(f"    {'':20}{'samples/s':>12}{'GB/s':>8}" + "".join(f"{title:>14}" for title in columns.values()))
    for name, of_rounds in rates.items():
        median = statistics.median(of_rounds)
        ratios = "".join(f"{_short(ratio(rates, name, other)):>14}" for other in columns)
        print(f"    {name:20}{median:12,.0f}{median * task.num_floats * 4e-9:8.2f}{ratios}")


def print_targets(results: Iterable[tuple[Task, Rates]]) -> None:
    """A line a target and race that tells of it."""
    print(f"\n{'':36}{'target':44}{'wanted':>8}{'found':>10}")
    for task, rates in results:
        for target in TARGETS:
            theirs = fastest_rival(rates) if target.theirs == FASTEST else target.theirs
            if target.is_for(task) and theirs in rates:
                found = ratio(rates, target.ours, theirs)
                what = f"{target.ours} / {theirs}{' *' if target.theirs == FASTEST else ''}"
                verdict = "met" if found >= target.ratio else "MISSED"
                print(f"{describe(task):36}{what:44}{target.ratio:8g}{_short(found):>10}  {verdict}")


def describe(task: Task) -> str:
    """One task in words."""
    order = "shuffled" if task.shuffle else "in order"
    return f"{task.num_floats * 4e-3:g} kB x {task.num_samples:,}, {task.num_workers} workers, {order}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
