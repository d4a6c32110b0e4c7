"""Which rows and columns a table is asked for, and how their values are shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.schema import REASON, UID
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.words import BEFORE

ABSENT = (NOT_SELECTED, BEFORE)  # reasons of rows that a stage was not given


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which rows of a stage, which columns, and where those lie.

    `names` are the columns asked for, `bound` holds those of the condition too. `reasons` are of
    the rows: None for those the stage keeps or was given, empty for any.
    """

    state: RunState
    stage: str
    bound: Mapping[str, Binding]
    names: tuple[str, ...]
    condition: Any  # a stage that asks it of rows, or None
    reasons: frozenset[str] | None
    used: tuple[str, ...]  # stages that are read, the root first
    is_large: bool

    @property
    def shards(self) -> list[int]:
        """Those that every stage which is read has come to, and that hold such a row."""
        stages = [self.state.stages[name].shards for name in self.used]
        there = (shard for shard in sorted(stages[0]) if all(shard in one for one in stages))
        return [shard for shard in there if self.by_record(shard) != 0]

    def by_record(self, shard: int) -> int | None:
        """Rows of a shard with such a reason, as its record counts them; None where it does not."""
        counts = self.state.stages[self.stage].recorded(shard)
        if counts is None:
            return None
        return sum(rows for code, rows in counts.items() if self.wants(code))

    def wants(self, code: str) -> bool:
        """Whether rows with this reason, "" for none, are asked for."""
        codes, are_wanted = self.codes
        return (code in codes) is are_wanted

    @property
    def codes(self) -> tuple[frozenset[str], bool]:
        """Reasons, "" for none; and whether rows with these are asked for, or those with others."""
        is_select = self.state.plan.stages[self.stage].is_select
        if self.reasons is None:
            return (frozenset({""}), True) if is_select else (frozenset(ABSENT), False)
        if self.reasons:
            return self.reasons, True
        return frozenset({"", NOT_SELECTED, *(() if is_select else (BEFORE,))}), False

    def source(self, name: str) -> Binding:
        """Where a column lies."""
        return (self.stage, name) if name == REASON.name else self.bound[name]

    def is_loaded(self, name: str) -> bool:
        """Whether a column is not stored, but read from its stage's source."""
        stage, column = self.source(name)
        source = self.state.stored[stage].stage
        return source is not None and column in {virtual.name for virtual in source.virtual}


def plain(table: pa.Table) -> pl.DataFrame:
    """The table with text for dictionaries, and of uids their hex digits."""
    return pl.DataFrame(table).with_columns(
        as_text(field.name, field.type) for field in table.schema if is_coded(field.type)
    )


def is_coded(dtype: pa.DataType) -> bool:
    """Whether values of a stored type are shown as text."""
    return bool(dtype == UID.dtype or pa.types.is_dictionary(dtype)) or _is_list_of_words(dtype)


def as_text(name: str, dtype: pa.DataType) -> pl.Expr:
    """The column as text: of uids hex digits, of dictionaries words."""
    if dtype == UID.dtype:
        return pl.col(name).bin.encode("hex")
    return pl.col(name).cast(pl.List(pl.String) if pa.types.is_list(dtype) else pl.String)


def _is_list_of_words(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_list(dtype) and pa.types.is_dictionary(dtype.value_type))
