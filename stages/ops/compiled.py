"""Compiles loops over bytes and numbers at their first call, cached for the next process."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Returns a decorator that compiles a loop to machine code, run without Python's lock.

    The code is kept beside its source, else in the user's cache. If neither can be written (a
    read-only image, a user without a home), each process compiles again, which takes seconds.
    """

    def decorate(loop: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, **options)(loop)
        with suppress(RuntimeError):  # raised if no folder can be written
            dispatcher.enable_caching()
        return dispatcher

    return decorate
