"""What work says of itself while it runs: small messages, from any worker to the driver.

They are news, not results: one that comes late or not at all changes nothing. An executor carries
them unread to whoever set its `on_told`.
"""

from collections.abc import Callable
from typing import Any


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
