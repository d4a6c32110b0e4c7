"""What a worker says of the shard or unit in its hand."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from clipmill.pipeline.executors.telling import tell

TELL_S = 0.5  # between two words of a worker
_lock = threading.Lock()
_waiting: list["Teller"] = []  # whose newest word came too soon
_sender = 0  # the process whose thread sends those; a fork has none


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


@dataclass(eq=False)
class Teller:
    """What a stage's function calls in a worker: the first word goes at once, then two a second.

    A word that comes too soon waits, and the newest is sent: whoever looks sees the last one.
    """

    stages: tuple[str, ...]
    key: str
    _newest: Told | None = None
    _said_s: float = 0.0

    def __call__(self, done: float, all: float, what: str = "", **values: float) -> None:
        with _lock:
            told = {name: float(value) for name, value in values.items()}  # NumPy's among them
            self._newest = Told(self.stages, self.key, float(done), float(all), what, told)
            if self.is_due():
                self.send()
            elif self not in _waiting:
                _waiting.append(self)
                _start_sender()

    def over(self) -> None:
        """The piece is done, or has failed."""
        with _lock:
            if self._newest is not None:
                tell(Told(self.stages, self.key))
            self._newest = None
            if self in _waiting:
                _waiting.remove(self)

    def is_due(self) -> bool:
        return time.monotonic() >= self._said_s + TELL_S

    def send(self) -> None:
        if self._newest is not None:
            self._said_s = time.monotonic()
            tell(self._newest)


def _start_sender() -> None:
    """One thread for all: a thread for each shard cost more than what a short shard computes."""
    global _sender
    if _sender != os.getpid():
        _sender = os.getpid()
        threading.Thread(target=_send_late, daemon=True).start()


def _send_late() -> None:
    """Sends the words that waited long enough, until none waits."""
    global _sender
    while True:
        time.sleep(TELL_S / 4)
        with _lock:
            _sender = 0  # where a word cannot be sent, too: the next one starts a thread again
            for teller in [it for it in _waiting if it.is_due()]:
                _waiting.remove(teller)
                teller.send()
            if not _waiting:
                return
            _sender = os.getpid()
