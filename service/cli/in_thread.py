"""How a command talks to Redis that Ctrl-C may end at any moment.

Apart from the commands, because it is about threads alone.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Final, TypeVar

T = TypeVar("T")

NOTICED_SECONDS: Final = 0.5
"""Seconds until Ctrl-C is noticed that comes in the moment in which the main thread begins to wait."""
END: Final[Any] = object()
"""What `next` is to return, called in a thread, where there is no more."""


@contextlib.contextmanager
def in_thread(stop: Callable[[], object] = lambda: None) -> Iterator[Callable[..., Any]]:
    """Yield what calls a function in a thread of its own, and returns its result.

    Python raises KeyboardInterrupt in the main thread, wherever that is. If it is in hiredis 3.5.0, which encodes a
    command, the process dies of it (SIGSEGV).

    Args:
        stop: Ends what the thread waits for, when the caller leaves by an exception. By default, the thread
            completes what it does.
    """
    with ThreadPoolExecutor(1) as thread:

        def call(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
            future = thread.submit(function, *arguments, **options)
            while not wait([future], timeout=NOTICED_SECONDS).done:
                pass
            return future.result()

        try:
            yield call
        except BaseException:
            stop()
            raise
