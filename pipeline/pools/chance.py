"""Chance without a generator: every draw is a hash of what it decides about.

The order of draws, the number of workers and a restart therefore change nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


def fraction(*parts: str) -> float:
    """A number in [0, 1) that the words fix: 64-bit BLAKE2b over 2^64."""
    digest = blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def keep(package: str, key: str) -> float:
    """The fixed coin of a package's entry, whatever the seed: decides what may join any pool."""
    return fraction("keep", package, key)


def hex_id(*parts: str) -> str:
    """32 hex digits that the words fix, as a uid."""
    return blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Chance:
    """All the draws of one thing, a drawing or a row, each by its own purpose."""

    seed: int
    source: str
    key: str

    def u(self, purpose: str) -> float:
        """A number in [0, 1)."""
        return fraction(str(self.seed), purpose, self.source, self.key)

    def between(self, purpose: str, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.u(purpose) * (high - low + 1))

    def pick(self, purpose: str, choices: Sequence[T]) -> T:
        """One of the choices, all alike."""
        return choices[int(self.u(purpose) * len(choices))]

    def weighted(self, purpose: str, shares: Mapping[str, float]) -> str | None:
        """A name drawn with its share; null for what the shares leave of 1."""
        left = self.u(purpose)
        for name, share in shares.items():
            left -= share
            if left < 0:
                return name
        return None
