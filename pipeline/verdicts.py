"""Answers of a select stage about its verdicts; imported from `clipmill.pipeline.stage`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A number that decides which rows a select stage keeps."""

    name: str  # `sweep --vary` asks for it by this name
    column: str  # whose values it cuts, as the stage reads or writes it
    sign: Literal["<", "<=", ">", ">=", "=", "<>"]  # how a value that stays relates to the number
    value: float
    text: str  # the rule in the stage's words: `clip_score >= 0.3`
    reads: tuple[str, ...] = ()  # columns that other verdicts are made of, as the stage reads them
    made: tuple[str, ...] = ()  # and of its own
    is_size: bool = False  # a number or a share of rows, not a value of the column
    item: Literal["max", "min"] | None = None  # of a column of lists, the item that decides
    by_row: bool = False  # a row's verdict hangs on no other row: verdicts are asked by shard


@dataclass(frozen=True)
class Verdicts:
    """What a select stage keeps with another number in the place of a threshold's."""

    value: float
    rule: str
    keep: NDArray[np.bool_]  # (N,)


@runtime_checkable
class Selects(Protocol):
    """What a stage that writes `keep` answers about its verdicts, so that `plan` can check its
    thresholds, `sweep` can vary them, and `why` and the report can explain them.

    A stage that does not answer selects as well; it has no threshold that anybody sees.
    """

    def thresholds(self) -> Sequence[Threshold]:
        """Every number that decides, in the order of the settings."""
        ...

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        """The verdicts with each of the values in the threshold's place.

        `rows` has uid, shard, position and the columns named in `threshold.reads` that it reads;
        `made` has `keep`, today's verdict, and those in `threshold.made`. They are all rows of the
        pool; of a threshold `by_row` some of them, and uid may be left out. ValueError where a
        value cannot be.
        """
        ...

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """A clause on why the row is dropped, from the stage's own columns at that row; of a row
        that is kept, where `reason` is empty, on why it stays.

        Empty where the reason says it all; values of columns that a reason names are shown anyway,
        and so are the clusters that the stage reads.
        """
        ...


@runtime_checkable
class Varies(Protocol):
    """What a stage answers whose `verdicts` begin with work that is the same for all values, so
    that the explorer, which asks for one value after another, waits for it once."""

    def varying(
        self, threshold: Threshold, rows: pa.Table, made: pa.Table
    ) -> Callable[[Decimal], Verdicts]:
        """The verdicts with a value in the threshold's place; else as `verdicts`."""
        ...


Parts = Callable[[], Iterator[tuple[pa.Table, pa.Table]]]  # `rows` and `made` of every row once


@runtime_checkable
class Surveys(Protocol):
    """What a stage answers whose thresholds that are not `by_row` rank all rows, so that `sweep`
    holds a few shards of a large pool and not all of it."""

    def surveyed(
        self, threshold: Threshold, values: Sequence[Decimal], parts: Parts
    ) -> Callable[[pa.Table, pa.Table], Iterator[Verdicts]]:
        """The verdicts at each value on some rows, as `verdicts` gives them on all.

        `parts` may be asked several times; each time it reads the pool. ValueError where a value
        cannot be.
        """
        ...


class Condition(Protocol):
    """A condition on the columns of one row: its text, and its columns as the stage reads them."""

    @property
    def text(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...

    def broken(self, rows: pa.Table) -> NDArray[np.bool_]:
        """(N,) whether each row breaks it; a row that gives no answer breaks none."""
        ...


@runtime_checkable
class Conditions(Protocol):
    """What a stage answers that keeps the rows which meet all of some conditions, so that the
    report can ask each condition of every row."""

    @property
    def conjuncts(self) -> Sequence[Condition]: ...


@runtime_checkable
class Settles(Protocol):
    """What a stage answers some of whose thresholds stand inside a longer setting, so that the
    explorer can write the recipe with another number. Of any other the name is the setting."""

    def settled(self, threshold: Threshold, value: Decimal) -> tuple[str, str]:
        """The setting that holds the number, and its value with another number there."""
        ...
