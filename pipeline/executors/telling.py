"""Sends progress events from workers to the driver: small messages while work runs.

No result depends on them: one may be late or lost. An executor passes them unread to its
`on_told`, through which a run keeps `live.json` up to date.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ROWS, MORE_ROWS = "rows", "more rows"  # of a shard; of a pass over a shard that is stored already
COMPILING = "compiling once"
TELL_S = 0.5  # between two events of a worker on one shard or unit


def _nowhere(message: Any) -> None:
    """Drops a message: outside of a run there is no receiver."""


_say: Callable[[Any], None] = _nowhere


def connect(say: Callable[[Any], None]) -> None:
    """Sets the function that sends this process's messages."""
    global _say
    _say = say


def tell(message: Any) -> None:
    """Sends a small picklable message to the driver."""
    _say(message)


class EventQueue:
    """A queue of messages from workers to the driver; on Ray, an actor."""

    def __init__(self) -> None:
        self._left: list[Any] = []

    def leave(self, message: Any) -> None:
        self._left.append(message)

    def take(self) -> list[Any]:
        """Returns and removes all queued messages."""
        taken, self._left = self._left, []
        return taken


@dataclass(frozen=True)
class ProgressEvent:
    """A worker's progress on a shard or unit of some stages; `all` is 0 once it is finished."""

    stages: tuple[str, ...]
    key: str
    done: float = 0.0
    all: float = 0.0
    what: str = ""
    values: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def reporting(stage: str, what: str) -> Iterator[None]:
    """Reports while inside that the stage does `what`, without a measure of progress."""
    tell(ProgressEvent((stage,), what, all=1, what=what))
    try:
        yield
    finally:
        tell(ProgressEvent((stage,), what))


@dataclass(frozen=True)
class Notice:
    """A sentence of the executor for the user."""

    text: str


class _Compiling:
    """A listener of Numba's: reports compiling as progress; an install compiles code once.

    The stages are those whose shard or unit began last in this process.
    """

    stages: tuple[str, ...] = ()
    _depth = 0

    def notify(self, event: Any) -> None:
        self._depth += 1 if event.is_start else -1
        if self._depth == int(event.is_start):  # the outermost of nested ones
            all = float(event.is_start)
            tell(ProgressEvent(self.stages, COMPILING, all=all, what=COMPILING))

    def listen(self, stages: tuple[str, ...]) -> None:
        """Reports what is compiled from now on for `stages`, where Numba is imported."""
        if (events := sys.modules.get("numba.core.event")) is not None:
            if not self.stages:
                events.Listener.register(_Compiling)
                events.register("numba:compile", self)
            self.stages = stages


_compiling = _Compiling()
_lock = threading.Lock()
_late: dict["ProgressReporter", ProgressEvent] = {}  # newest delayed event of each reporter
_sender = 0  # pid of the process whose thread sends delayed events; a fork has none


@dataclass(eq=False)
class ProgressReporter:
    """A stage's reporter of progress: sends the first event at once, then at most two a second.

    Events that come sooner are delayed, and only the newest is sent.
    """

    stages: tuple[str, ...]
    key: str
    _sent_s: float = 0.0

    def __post_init__(self) -> None:
        _compiling.listen(self.stages)

    def __call__(self, done: float, all: float, what: str = "", **values: float) -> None:
        plain = {name: float(value) for name, value in values.items()}  # may be NumPy scalars
        event = ProgressEvent(self.stages, self.key, float(done), float(all), what, plain)
        with _lock:
            if self not in _late and time.monotonic() >= self._sent_s + TELL_S:
                self._sent_s = time.monotonic()
                tell(event)
            else:
                _late[self] = event
                _start_sender()

    def over(self) -> None:
        """Reports that the shard or unit is done, or has failed."""
        with _lock:
            _late.pop(self, None)
            if self._sent_s:
                tell(ProgressEvent(self.stages, self.key))
            self._sent_s = 0.0


def _start_sender() -> None:
    """Starts one sender thread for all: one for each shard cost more than a short shard itself."""
    global _sender
    if _sender != os.getpid():
        _sender = os.getpid()
        threading.Thread(target=_send_late, daemon=True).start()


def _send_late() -> None:
    """Sends delayed events until there are none."""
    global _sender
    while True:
        time.sleep(TELL_S)
        with _lock:
            events = list(_late.items())
            _late.clear()
            _sender = 0  # this thread ends if there are no events, or if sending raises
            for reporter, event in events:
                reporter._sent_s = time.monotonic()
                tell(event)
            if not events:
                return
            _sender = os.getpid()
