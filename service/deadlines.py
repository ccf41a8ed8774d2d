"""Timeouts of any number of waits, with one timer."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

TICK_SECONDS: Final = 0.1
"""Between two looks at what is late."""


class Deadlines:
    """Calls what is late. Of one event loop. A timer for each wait would cost more than what it guards."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._running: dict[int, tuple[float, Callable[[], object]]] = {}
        self._rings = False

    def start(self, deadline: float, act: Callable[[], object]) -> int:
        """Call `act` soon after the loop's clock shows the deadline, unless it was stopped by then."""
        number = next(self._numbers)
        self._running[number] = deadline, act
        if not self._rings:
            self._ring()
        return number

    def stop(self, number: int) -> None:
        self._running.pop(number, None)

    def is_over(self, number: int) -> bool:
        """Tell whether it was called."""
        return number not in self._running

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for number, (deadline, act) in [*self._running.items()]:
            if deadline <= now:
                self.stop(number)
                act()
        self._rings = bool(self._running)
        if self._rings:
            loop.call_later(TICK_SECONDS, self._ring)
