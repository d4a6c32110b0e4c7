"""Compiles loops over bytes and numbers at their first call, cached for the next process."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Returns a decorator that compiles a loop to machine code, run without Python's lock.

    The code is kept beside its source, else in the user's cache. If neither can be written (a
    read-only image, a user without a home), each process compiles again, which takes seconds.
    """

    def decorate(loop: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, **options)(loop)
        dispatcher._compilation_chain_init_hook = lambda: None  # which looks through all packages
        with suppress(RuntimeError):  # raised if no folder can be written
            dispatcher._cache = _Cache(loop)
        return dispatcher

    return decorate


class _Cache(FunctionCache):
    """Loads machine code without Numba's compiler, whose import takes a quarter of a second.

    A compilation imports it by itself.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # counts references to arrays
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)
