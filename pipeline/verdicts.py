"""Protocols of select stages about their verdicts; import them from `clipmill.pipeline.stage`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Sign = Literal["<", "<=", ">", ">=", "=", "<>"]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A number that decides which rows a select stage keeps."""

    name: str  # its name in `sweep --vary`
    column: str  # column it cuts, as the stage reads or writes it
    sign: Sign  # kept values against the number
    value: float
    text: str  # the rule in the stage's words: `clip_score >= 0.3`
    reads: tuple[str, ...] = ()  # columns read for counterfactual verdicts
    made: tuple[str, ...] = ()  # own columns read for them
    is_size: bool = False  # a number or share of rows, not a value of the column
    item: Literal["max", "min"] | None = None  # item that decides, in a column of lists
    by_row: bool = False  # the verdict depends on the row alone: shards are evaluated one by one

    @classmethod
    def own(
        cls, name: str, column: str, sign: Sign, value: float, text: str, is_size: bool = False
    ) -> Self:
        """Builds a bound on a column that the stage makes: on each row's value, or a size."""
        return cls(
            name=name,
            column=column,
            sign=sign,
            value=value,
            text=text,
            made=(column,),
            is_size=is_size,
            by_row=not is_size,
        )


@dataclass(frozen=True)
class Verdicts:
    """The rows that a select stage would keep with another threshold."""

    value: float
    rule: str
    keep: NDArray[np.bool_]  # (N,)


@runtime_checkable
class Selects(Protocol):
    """A stage that answers questions about its `keep`, so that `plan` can check its thresholds,
    `sweep` can vary them, and `why` and the report can explain them.

    Optional: without these methods a select stage works, but shows no thresholds.
    """

    def thresholds(self) -> Sequence[Threshold]:
        """Returns every threshold, in the order of the settings."""

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """Yields the verdicts with each value in the threshold's place.

        `rows` has uid, shard, position and the columns of `threshold.reads`; `made` has `keep`,
        today's verdict, and the columns of `threshold.made`. They hold all rows of the pool; for a
        threshold `by_row` only some, perhaps without uid. ValueError for an impossible value.
        """

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns a clause on why a row is dropped, or kept if `reason` is empty, from the stage's
        own columns at that row.

        Empty if the reason is enough. The values of columns that a reason names are shown anyway,
        as are clusters that the stage reads.
        """


@runtime_checkable
class Tells(Protocol):
    """A stage of scores that can say why its first column is high or low at a row."""

    def tells(self, values: Mapping[str, Any], kept: bool) -> str:
        """Returns a clause on a row that a select kept or dropped, from its stored values."""


@runtime_checkable
class Varies(Protocol):
    """A stage whose `verdicts` begin with work that all values share. The explorer, which asks for
    one value after another, does that work once."""

    def varying(
        self, threshold: Threshold, rows: pa.Table, made: pa.Table
    ) -> Callable[[Decimal], Verdicts]:
        """Does the shared work; returns a function from a value to its verdicts."""


Parts = Callable[[], Iterator[tuple[pa.Table, pa.Table]]]  # `rows` and `made`, all rows once


@runtime_checkable
class Surveys(Protocol):
    """A stage whose thresholds, unless `by_row`, rank all rows. For a large pool `sweep` then holds
    few shards in memory."""

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """Surveys all rows; returns a function that gives `verdicts` on some of them.

        `parts` may be called several times, and reads the pool each time. ValueError for an
        impossible value.
        """


class Condition(Protocol):
    """A condition on the columns of a row: its text, and its columns as the stage reads them."""

    @property
    def text(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...

    def broken(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Returns (N,) whether each row breaks it; False if the condition is undefined there."""


@runtime_checkable
class Conditions(Protocol):
    """A stage that keeps the rows meeting all of some conditions. The report evaluates each
    condition on every row."""

    @property
    def conjuncts(self) -> Sequence[Condition]: ...


@runtime_checkable
class Settles(Protocol):
    """A stage with thresholds inside a longer setting, which the explorer writes with another
    number. In other stages a threshold is a whole setting, of the same name."""

    def settled(self, threshold: Threshold, value: Decimal) -> tuple[str, str]:
        """Returns the setting that holds the number, and its text with `value` in place of it."""
