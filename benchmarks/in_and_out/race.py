"""Two ways to do the same, in turns; the ratio of their rates is what is reported."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Contents = Counter[bytes]  # digests of the samples


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do it.

    Attributes:
        name: As it is printed.
        run: Does it all.
        count: The number of samples, by what `run` returned; is not timed.
        contents: Does it all, and looks at every sample.
    """

    name: str
    run: Callable[[], Any]
    count: Callable[[Any], int]
    contents: Callable[[], Contents]


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Two ways to read or write the same samples.

    Attributes:
        title: What is done, with which samples, where.
        num_samples: What both must return.
        theirs: The way of another library.
        ours: The way of dray.
        target: The ratio that ours should come to at least; None: there is no target.
    """

    title: str
    num_samples: int
    theirs: Way
    ours: Way
    target: float | None


def run(race: Race, rounds: int) -> None:
    """Run both in each round, in changing order, after one in which every sample was looked at; print medians.

    Raises:
        SystemExit: They do not give the same samples, or not all of them.
    """
    theirs_found, ours_found = race.theirs.contents(), race.ours.contents()
    if theirs_found != ours_found or ours_found.total() != race.num_samples:
        raise SystemExit(f"{race.title}: {race.theirs.name} and {race.ours.name} do not give the same samples")
    rates = [_round(race, number) for number in range(rounds)]
    theirs, ours = zip(*rates, strict=True)
    ratio = statistics.median(our / their for their, our in rates)
    print(f"{race.title}")
    for way, of_way in ((race.theirs, theirs), (race.ours, ours)):
        print(f"  {way.name:28} {statistics.median(of_way):10,.0f} samples/s")
    print(f"  {race.ours.name} / {race.theirs.name}: {ratio:.1f}{_judged(ratio, race.target)}", flush=True)


def _round(race: Race, number: int) -> Sequence[float]:
    """Samples per second of theirs and ours."""
    ways = (race.theirs, race.ours) if number % 2 else (race.ours, race.theirs)
    rates = {way.name: _rate(way, race.num_samples) for way in ways}
    return rates[race.theirs.name], rates[race.ours.name]


def _rate(way: Way, num_samples: int) -> float:
    started = time.perf_counter()
    result = way.run()
    seconds = time.perf_counter() - started
    found = way.count(result)
    if found != num_samples:
        raise SystemExit(f"{way.name}: {num_samples:,} samples expected, found {found:,}")
    return found / seconds


def _judged(ratio: float, target: float | None) -> str:
    if target is None:
        return ""
    return f" (target: {target:g}{'' if ratio >= target else ', MISSED'})"
