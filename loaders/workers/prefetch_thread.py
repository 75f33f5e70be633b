"""Prefetches the items of an iterator in a thread.

`concurrent.futures` would do, but its futures cost several times as much as these queues: with batches of 32 samples of
4 kB, a quarter of all time.
"""

from collections.abc import Generator, Iterator
from queue import Empty, SimpleQueue
from threading import Lock, Thread, main_thread
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_S = 0.2  # interval between two checks whether the interpreter ends


class Lookahead(Generic[T]):
    """Runs one iterator after another, each in a thread of its own; never two at a time.

    A thread ends with its iterator, or soon after the consuming generator is closed or the main thread ends: a thread
    that the interpreter has to stop at its end can crash the process.

    Args:
        ahead: Maximum number of prefetched items, the requested one included.
        name: Name of the threads.
    """

    def __init__(self, ahead: int, name: str) -> None:
        self._ahead, self._name = ahead, name
        self._turn = Lock()

    def items(self, source: Iterator[T]) -> Generator[T, None, None]:
        """Yields the items of the iterator, and raises its error after the items before it.

        Closing does not wait for the thread, as the garbage collector may close the generator at any place.
        """
        wanted: SimpleQueue[bool] = SimpleQueue()  # false: stop
        taken: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
        for _ in range(self._ahead - 1):
            wanted.put(True)
        Thread(target=self._take, args=(source, wanted, taken), name=self._name).start()
        try:
            while True:
                wanted.put(True)
                item = taken.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    try:
                        raise item
                    finally:
                        del item  # its traceback refers to this frame
                yield item[0]
        finally:
            wanted.put(False)

    def _take(
        self, source: Iterator[T], wanted: "SimpleQueue[bool]", taken: "SimpleQueue[tuple[T] | BaseException | None]"
    ) -> None:
        with self._turn:
            try:
                while _is_asked(wanted):
                    taken.put((next(source),))
            except StopIteration:
                taken.put(None)
            except BaseException as exc:  # noqa: BLE001  `items` raises it
                taken.put(exc)


def _is_asked(wanted: "SimpleQueue[bool]") -> bool:
    while True:
        try:
            return wanted.get(timeout=LOOK_S)
        except Empty:
            if not main_thread().is_alive():
                return False
