"""What a worker says of the shard or unit in its hand."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.executors.telling import tell

TELL_S = 0.5  # between two words of a worker
_lock = threading.Lock()


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


@dataclass
class Teller:
    """What a stage's function calls in a worker: the first word goes at once, then two a second.

    A word that comes too soon waits, and the newest is sent: whoever looks sees the last one.
    """

    stages: tuple[str, ...]
    key: str
    _newest: Told | None = None
    _said_s: float = 0.0
    _timer: threading.Timer | None = None

    def __call__(self, done: float, all: float, what: str = "", **values: float) -> None:
        with _lock:
            told = {name: float(value) for name, value in values.items()}  # NumPy's among them
            self._newest = Told(self.stages, self.key, float(done), float(all), what, told)
            wait_s = self._said_s + TELL_S - time.monotonic()
            if wait_s <= 0:
                self._send()
            elif self._timer is None:
                self._timer = threading.Timer(wait_s, self._late)
                self._timer.daemon = True
                self._timer.start()

    def over(self) -> None:
        """The piece is done, or has failed."""
        with _lock:
            if self._newest is not None:
                tell(Told(self.stages, self.key))
            self._newest = None

    def _late(self) -> None:
        with _lock:
            self._timer = None
            self._send()

    def _send(self) -> None:
        if self._newest is not None:
            self._said_s = time.monotonic()
            tell(self._newest)
