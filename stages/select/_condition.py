"""AND, OR and NOT over names: parsed, asked of every combination, and who decides in each.

A condition over K names has 2^K answers, so it is a table of them: a row is the number whose bit k
says whether name k holds, and no row costs more than looking it up.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError

# Shapes: K names, C = 2^K combinations of them.

MOST_NAMES = 12  # 4,096 combinations
DEEPEST = 40
TOKEN = re.compile(r"\s*(?:([()])|([A-Za-z][A-Za-z0-9_-]*)|(\S+))")
Bools = NDArray[np.bool_]


DROPPED_BY, KEPT_BY = "dropped_by:", "kept_by:"


@dataclass(frozen=True)
class Condition:
    """The names in the order in which they stand; of each combination of them, whether it holds,
    and the number of its reason, 0 where it holds."""

    names: tuple[str, ...]
    holds: Bools  # (C,)
    reasons: tuple[str, ...]
    reason: NDArray[np.int32]  # (C,)


@cache
def condition(text: str) -> Condition:
    """What the text says; RecipeError where it is no condition, or one that nothing bounds."""
    reading = _Reading(text)
    names = tuple(dict.fromkeys(word for word in reading.words if _is_name(word)))
    _check_number(names, "where")
    combination_C = np.arange(1 << len(names))
    value = {name: (combination_C >> k & 1).astype(bool) for k, name in enumerate(names)}
    holds_C = reading.whole(value)
    if holds_C[0]:
        raise _wrong(
            f"`{text}` keeps rows that none of its selects keeps",
            "say what rows are taken from: `best AND NOT blurry`",
        )
    if not holds_C.any():
        raise _wrong(f"`{text}` keeps no row, whatever its selects keep", "mend it")
    return _decided(names, holds_C)


@cache
def any_of(names: tuple[str, ...]) -> Condition:
    """That at least one of them holds."""
    _check_number(names, "repeats")
    return _decided(names, np.arange(1 << len(names)) > 0)


def _check_number(names: tuple[str, ...], key: str) -> None:
    if len(names) > MOST_NAMES:
        raise RecipeError(
            f"{len(names)} selects, and {MOST_NAMES} are the most",
            f"key `{key}`",
            "combine some of them in a stage before this one",
        )


def _decided(names: tuple[str, ...], holds_C: Bools) -> Condition:
    """Who decides where it does not hold: the first name to turn, on the way of the fewest turns
    to a combination that holds."""
    combination_C = np.arange(len(holds_C))
    bit_K = 1 << np.arange(len(names))
    way_C = np.where(holds_C, 0, len(names) + 1)
    for _ in names:
        for bit in bit_K:
            way_C = np.minimum(way_C, way_C[combination_C ^ bit] + 1)
    decider_C = (way_C[combination_C[:, None] ^ bit_K] < way_C[:, None]).argmax(axis=1)
    is_kept_C = (combination_C >> decider_C & 1).astype(bool)
    every = [f"{how}{name}" for name in names for how in (DROPPED_BY, KEPT_BY)]
    number_C = 2 * decider_C + is_kept_C
    used, reason_C = np.unique(number_C[~holds_C], return_inverse=True)
    of_all_C = np.zeros(len(holds_C), np.int32)
    of_all_C[~holds_C] = reason_C
    return Condition(names, holds_C, tuple(every[number] for number in used), of_all_C)


def _is_name(word: str) -> bool:
    return word.lower() not in ("and", "or", "not", "(", ")")


def _wrong(found: str, do: str) -> RecipeError:
    return RecipeError(found, "key `where`", do)


class _Reading:
    """A text read from left to right: NOT binds before AND, and AND before OR."""

    def __init__(self, text: str) -> None:
        self.text, self.words, self.at = text, [], 0
        for bracket, name, other in TOKEN.findall(text):
            if other:
                raise self._unread(other)
            self.words.append(bracket or name)

    def whole(self, value: dict[str, Bools]) -> Bools:
        answer = self._any(value, 0)
        if self.at < len(self.words):
            raise self._unread(self.words[self.at])
        return answer

    def _any(self, value: dict[str, Bools], depth: int) -> Bools:
        answer = self._all(value, depth)
        while self._next("or"):
            answer = self._all(value, depth) | answer
        return answer

    def _all(self, value: dict[str, Bools], depth: int) -> Bools:
        answer = self._one(value, depth)
        while self._next("and"):
            answer = self._one(value, depth) & answer
        return answer

    def _one(self, value: dict[str, Bools], depth: int) -> Bools:
        if depth > DEEPEST:
            raise _wrong(f"nested more than {DEEPEST} deep", "take brackets out")
        if self._next("not"):
            return ~self._one(value, depth + 1)
        if self._next("("):
            answer = self._any(value, depth + 1)
            if not self._next(")"):
                raise _wrong(f"a bracket is not closed in `{self.text}`", "close it")
            return answer
        if self.at == len(self.words):
            raise _wrong(f"`{self.text}` breaks off", "name a select stage there")
        word = self.words[self.at]
        if not _is_name(word):
            raise self._unread(word)
        self.at += 1
        return value[word]

    def _next(self, word: str) -> bool:
        is_next = self.at < len(self.words) and self.words[self.at].lower() == word
        self.at += is_next
        return is_next

    def _unread(self, word: str) -> RecipeError:
        do = "join names of select stages with AND, OR, NOT and brackets: `best AND NOT blurry`"
        return _wrong(f"`{word}` cannot stand where it does in `{self.text}`", do)
