"""Prefetching in a thread: the same items, in order, and no thread that stays."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dray.loaders.workers.prefetch_thread import Lookahead

NAME = "test-lookahead"


def counted(last: int, taken: list[int]) -> Iterator[int]:
    for number in range(last):
        taken.append(number)
        yield number


def join_all() -> None:
    for thread in [thread for thread in threading.enumerate() if thread.name == NAME]:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_items_come_in_order_and_not_too_far_ahead(ahead: int) -> None:
    """`ahead - 1` items besides the current one: with 1, nothing is taken before it is requested."""
    taken: list[int] = []
    for number, item in enumerate(Lookahead[int](ahead, NAME).items(counted(50, taken))):
        assert item == number
        assert len(taken) <= number + ahead
    assert len(taken) == 50
    join_all()


def test_an_error_comes_after_the_items_before_it() -> None:
    """Any error is raised unchanged."""

    def failing() -> Iterator[int]:
        yield from range(3)
        raise KeyError("third")

    found: list[int] = []
    with pytest.raises(KeyError, match="third"):
        found.extend(Lookahead[int](2, NAME).items(failing()))
    assert found == [0, 1, 2]
    join_all()


def test_the_next_iterator_waits_for_the_end_of_the_last() -> None:
    """An abandoned one finishes its item before the next one begins, as they may share a reader."""
    lookahead, running, most = Lookahead[int](2, NAME), [0], [0]
    gate = threading.Event()

    def slow() -> Iterator[int]:
        for number in range(9):
            running[0] += 1
            most[0] = max(most[0], running[0])
            if number:
                gate.wait(10)
            running[0] -= 1
            yield number

    first = lookahead.items(slow())
    assert next(first) == 0
    first.close()
    second = lookahead.items(slow())
    threading.Timer(0.05, gate.set).start()
    assert list(second) == list(range(9))
    assert most == [1]
    join_all()


LEFT = """
import threading
from dray.loaders.workers.prefetch_thread import Lookahead
def endless():
    number = 0
    while True:
        yield number
        number += 1
held = Lookahead(2, "left").items(endless())
print(next(held), threading.active_count())
"""


def test_one_that_is_open_at_the_end_does_not_hold_the_interpreter() -> None:
    """The process ends without output."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 2\n", "")
