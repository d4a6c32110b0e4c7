"""Handles Ctrl-C and `kill` while workers run."""

import contextlib
import os
import signal
from collections.abc import Iterator

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Makes the first Ctrl-C or `kill` inside a KeyboardInterrupt; the next ends the process."""
    before = {
        number: signal.signal(number, _stop)
        for number in STOPS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _stop:
                signal.signal(number, handler)


def exit_code(stop: KeyboardInterrupt) -> int:
    """Returns 128 plus the signal's number, as shells do."""
    return 128 + int(stop.args[0] if stop.args else signal.SIGINT)


def _stop(number: int, _frame: object) -> None:
    for other in STOPS:
        if signal.getsignal(other) is _stop:
            signal.signal(other, _end)
    raise KeyboardInterrupt(number)


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
