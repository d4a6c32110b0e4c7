"""Ctrl-C and `kill` while workers are at work."""

import contextlib
import os
import signal
from collections.abc import Iterator

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, the first Ctrl-C or `kill` is a KeyboardInterrupt; the next ends us at once."""
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
    """128 and the signal's number, as a shell counts."""
    return 128 + int(stop.args[0] if stop.args else signal.SIGINT)


def _stop(number: int, _frame: object) -> None:
    for it in STOPS:
        if signal.getsignal(it) is _stop:
            signal.signal(it, _end)
    raise KeyboardInterrupt(number)


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
