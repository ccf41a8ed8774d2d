"""One future for many commands; apart from `pipeline`, which knows nothing of the place of a command among others."""

import contextlib
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final


class Batched:
    """Collects what becomes of commands that were submitted together.

    Attributes:
        future: Its result is a list: for each command its result, or the error that it failed with.
        places: For each command, what stands for a future of its own.
    """

    def __init__(self, count: int, future: "Future[list[Any]]") -> None:
        """Take the number of commands, at least one, and a future that is not done."""
        self.future: Final = future
        self.places: Final = [_Place(self, number) for number in range(count)]
        self._results: Final[list[Any]] = [None] * count
        self._missing = count

    def put(self, number: int, result: object) -> None:
        """Take the result or the error of a command; to be called once for each, on the pipeline's loop."""
        self._results[number] = result
        self._missing -= 1
        if not self._missing and not self.future.done():
            with contextlib.suppress(InvalidStateError):  # another thread has stopped waiting just now
                self.future.set_result(self._results)


class _Place:
    """Does for one command what the pipeline asks of a future."""

    __slots__ = ("_batched", "_number")

    def __init__(self, batched: Batched, number: int) -> None:
        self._batched, self._number = batched, number

    def done(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return self._batched.future.done()

    def set_result(self, result: object) -> None:
        self._batched.put(self._number, result)

    set_exception = set_result
