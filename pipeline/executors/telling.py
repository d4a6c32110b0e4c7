"""What work says of itself while it runs: small messages, from any worker to the driver.

They are news, not results: one that comes late or not at all changes nothing. An executor carries
them unread to whoever set its `on_told`: a run, which keeps them in its `live.json`.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TELL_S = 0.5  # between two words of a worker on one piece


def _nowhere(message: Any) -> None:
    """Outside of a run nobody listens."""


_say: Callable[[Any], None] = _nowhere


def connect(say: Callable[[Any], None]) -> None:
    """From now on what this process tells goes there."""
    global _say
    _say = say


def tell(message: Any) -> None:
    """Sends a small picklable message to the driver."""
    _say(message)


class Board:
    """Where workers elsewhere leave what they tell, until the driver takes it: an actor on Ray."""

    def __init__(self) -> None:
        self._left: list[Any] = []

    def leave(self, message: Any) -> None:
        self._left.append(message)

    def take(self) -> list[Any]:
        """All that was left since the last time."""
        taken, self._left = self._left, []
        return taken


@dataclass(frozen=True)
class Told:
    """A worker's word on a shard or unit of some stages; without `all` it has left its hand."""

    stages: tuple[str, ...]
    key: str
    done: float = 0.0
    all: float = 0.0
    what: str = ""
    values: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def saying(stage: str, what: str) -> Iterator[None]:
    """Inside it the stage is said to do this, and nothing of how far it is."""
    tell(Told((stage,), what, all=1, what=what))
    try:
        yield
    finally:
        tell(Told((stage,), what))


_lock = threading.Lock()
_late: dict["Teller", Told] = {}  # of each whose words come too soon, the newest
_sender = 0  # the process whose thread sends those; a fork has none


@dataclass(eq=False)
class Teller:
    """What a stage's function calls in a worker: the first word goes at once, then two a second.

    A word that comes too soon waits, and the newest is sent: whoever looks sees the last one.
    """

    stages: tuple[str, ...]
    key: str
    _said_s: float = 0.0

    def __call__(self, done: float, all: float, what: str = "", **values: float) -> None:
        plain = {name: float(value) for name, value in values.items()}  # NumPy's among them
        word = Told(self.stages, self.key, float(done), float(all), what, plain)
        with _lock:
            if self not in _late and time.monotonic() >= self._said_s + TELL_S:
                self._said_s = time.monotonic()
                tell(word)
            else:
                _late[self] = word
                _start_sender()

    def over(self) -> None:
        """The piece is done, or has failed."""
        with _lock:
            _late.pop(self, None)
            if self._said_s:
                tell(Told(self.stages, self.key))
            self._said_s = 0.0


def _start_sender() -> None:
    """One thread for all: a thread for each shard cost more than what a short shard computes."""
    global _sender
    if _sender != os.getpid():
        _sender = os.getpid()
        threading.Thread(target=_send_late, daemon=True).start()


def _send_late() -> None:
    """Sends the words that waited, until none does."""
    global _sender
    while True:
        time.sleep(TELL_S)
        with _lock:
            words = list(_late.items())
            _late.clear()
            _sender = 0  # where a word cannot be sent, too: the next one starts a thread again
            for teller, word in words:
                teller._said_s = time.monotonic()
                tell(word)
            if not words:
                return
            _sender = os.getpid()
