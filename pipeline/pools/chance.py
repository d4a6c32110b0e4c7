"""Random draws by hashing: each draw is a hash of its subject and purpose.

So the order of draws, the number of workers and restarts change nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


def fraction(*parts: str) -> float:
    """Returns a number in [0, 1) from the words: 64-bit BLAKE2b over 2^64."""
    digest = blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def keep(package: str, key: str) -> float:
    """Returns a package entry's number in [0, 1), for every seed: decides what may join pools."""
    return fraction("keep", package, key)


def hex_id(*parts: str) -> str:
    """Returns 32 hex digits from the words, as a uid."""
    return blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Chance:
    """The random draws of one drawing or row; each purpose has its own."""

    seed: int
    source: str
    key: str

    def u(self, purpose: str) -> float:
        """Draws a number in [0, 1)."""
        return fraction(str(self.seed), purpose, self.source, self.key)

    def between(self, purpose: str, low: int, high: int) -> int:
        """Draws a whole number from low to high, both included."""
        return low + int(self.u(purpose) * (high - low + 1))

    def pick(self, purpose: str, choices: Sequence[T]) -> T:
        """Draws one of the choices, all equally likely."""
        return choices[int(self.u(purpose) * len(choices))]

    def weighted(self, purpose: str, shares: Mapping[str, float]) -> str | None:
        """Draws a name by its share; None for the rest of 1."""
        left = self.u(purpose)
        for name, share in shares.items():
            left -= share
            if left < 0:
                return name
        return None
