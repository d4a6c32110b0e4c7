"""Loops over bytes and numbers, compiled at their first call and kept for the next process."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """The loop as machine code that runs without Python's lock.

    The code is kept beside its source, else in the user's cache. Where neither can be written (a
    read-only image, a user without a home), each process compiles again, which takes seconds.
    """

    def decorate(loop: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, **options)(loop)
        with suppress(RuntimeError):  # what it raises where no folder can be written
            dispatcher.enable_caching()
        return dispatcher

    return decorate
