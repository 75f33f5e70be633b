"""What an iterator gives, taken by a thread ahead of whoever asks.

`concurrent.futures` would do, but its futures cost several times what these queues do: with batches of 32 samples of
4 kB, a quarter of all time.
"""

from collections.abc import Generator, Iterator
from queue import Empty, SimpleQueue
from threading import Lock, Thread, main_thread
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_S = 0.2  # between two looks at whether the interpreter ends


class Lookahead(Generic[T]):
    """Runs one iterator after another, each in a thread of its own; never two at a time.

    A thread ends with its iterator, or soon after what is taken from it is closed or the main thread ends: one that the
    interpreter ends itself, wherever it is, may take the process with it.

    Args:
        ahead: Maximum number of prefetched items, the requested one included.
        name: Of the threads.
    """

    def __init__(self, ahead: int, name: str) -> None:
        self._ahead, self._name = ahead, name
        self._turn = Lock()

    def items(self, source: Iterator[T]) -> Generator[T, None, None]:
        """What the iterator gives, its error after the items before it.

        It does not wait for the thread at its end: it may be closed by the garbage collector, at any place.
        """
        wanted: SimpleQueue[bool] = SimpleQueue()  # false: no more
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
            except BaseException as exc:  # noqa: BLE001  whoever asks gets it
                taken.put(exc)


def _is_asked(wanted: "SimpleQueue[bool]") -> bool:
    while True:
        try:
            return wanted.get(timeout=LOOK_S)
        except Empty:
            if not main_thread().is_alive():
                return False
