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
