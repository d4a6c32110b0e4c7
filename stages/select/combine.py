"""Combines what several selects keep: by AND, OR and NOT, or as a weighted union."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_BYTES, KEEP, REPEATS, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, Threshold, Verdicts
from clipmill.stages.ops.tables.rows import with_reason

# Shapes: N rows, K selects; K names, C = 2^K combinations of them.

Weight = Annotated[int, Meta(ge=1, le=1_000_000)]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Condition:
    """A Boolean condition on selects, as a truth table: for each combination of the names, whether
    it holds, and the index of its reason, 0 if it holds."""

    names: tuple[str, ...]
    holds: Bools  # (C,)
    reasons: tuple[str, ...]
    reason: NDArray[np.int32]  # (C,)


@dataclass(frozen=True, kw_only=True)
class Combine(DatasetStage):
    """Keep decision of each row by what named selects keep; with `repeats`, how often it counts.

    A name stands for the rows that this select keeps: AND takes what both keep, OR what either
    does, AND NOT takes away. Rows that none of them keeps, or whose image failed, are dropped.

    `repeats: {a: 1, b: 2}` is their union as a multiset: a row counts once for `a`, twice for `b`
    and three times for both, each multiplied by its `repeats` at that select. Exports write it that
    many times.

    The reason names the select to blame: the first whose flip lies on a shortest path (fewest
    flips) to keeping the row, as `dropped_by:NAME`, or as `kept_by:NAME` if NAME kept the row.

    Source: none needed; weighted unions are DataComp's subset files (Gadre et al. 2023), which are
    multisets.
    Error: none.
    Example: {after: [ingest.image_folder, select.sample], repeats: {sample: 2}}
    """

    # Boolean condition on select stages: best AND NOT blurry; (a OR b) AND c
    where: NonEmpty | None = None
    # or: weight of each select; a row counts the sum over the selects that keep it
    repeats: Annotated[dict[NonEmpty, Weight], Meta(min_length=1)] | None = None

    version = 1
    determinism = "exact"

    def __post_init__(self) -> None:
        if (self.where is None) == (self.repeats is None):
            given = "neither `where` nor `repeats` is" if self.where is None else "both are"
            do = "write one: `where: a AND NOT b`, or `repeats: {a: 1, b: 2}`"
            raise RecipeError(f"{given} given", "its settings", do)
        self.ask()

    def ask(self) -> Condition:
        """Returns the condition; RecipeError if it is not valid."""
        return condition(self.where) if self.where else any_of(tuple(self.repeats or ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the selects, in order of appearance."""
        return self.ask().names

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(f"{name}.{KEEP.name}" for name in self.names)

    @property
    def optional_reads(self) -> tuple[Column | str, ...]:
        times = [f"{name}.{REPEATS.name}" for name in self.names] if self.repeats else []
        return (IMAGE_BYTES, *times)

    @property
    def writes(self) -> tuple[Column, ...]:
        return (KEEP, REPEATS) if self.repeats else (KEEP,)

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"undefined:{IMAGE_BYTES.name}", *self.ask().reasons)

    def thresholds(self) -> tuple[Threshold, ...]:
        """Returns no threshold: the named selects have their own."""
        return ()

    def verdicts(
        self, threshold: Threshold, values: Sequence[Decimal], rows: pa.Table, made: pa.Table
    ) -> Iterator[Verdicts]:
        return iter(())

    def explain(self, reason: str, made: Mapping[str, Any]) -> str:
        """Returns the condition, for a row that the selects decide on; else ""."""
        if not reason.startswith((DROPPED_BY, KEPT_BY)):
            return ""
        if self.repeats:
            return f"none of {', '.join(self.names)} keeps it"
        return f"the condition is {self.where}"

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.restore(ctx.map_shards(partial(judged, self, ctx.worker.stage), inputs.rows))


def judged(stage: Combine, name: str, rows: pa.Table) -> pa.Table:
    """Returns keep, reason and repeats of every row."""
    rule = stage.ask()
    kept = (rows[read].fill_null(False).to_numpy() for read in stage.reads)
    keep_NK = np.stack([*kept], axis=1)
    combination_N = keep_NK @ (1 << np.arange(len(rule.names)))
    has_image_N = np.ones(len(rows), bool)
    if IMAGE_BYTES.name in rows.column_names:
        has_image_N = rows[IMAGE_BYTES.name].is_valid().to_numpy()
    stays_N = rule.holds[combination_N] & has_image_N
    code_N = np.where(has_image_N, 1 + rule.reason[combination_N], 0)
    reason = pa.DictionaryArray.from_arrays(
        pa.array(code_N.astype(np.int32), mask=stays_N), list(stage.reasons)
    )
    made = {KEEP.name: pa.array(stays_N)}
    if stage.repeats:
        times_N = times(stage, rows, keep_NK)
        if times_N[stays_N].max(initial=0) > np.iinfo(np.int32).max:
            raise StageError(
                f"a row counts {times_N.max():,} times",
                f"stage '{name}', key `repeats`",
                "give smaller weights",
            )
        made[REPEATS.name] = pa.array(times_N.astype(np.int32), REPEATS.dtype, mask=~stays_N)
    return with_reason(rows, made, reason)


def times(stage: Combine, rows: pa.Table, keep_NK: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns (N,) the weights of the selects that keep a row, times its repeats there, summed."""
    sum_N = np.zeros(len(rows), np.int64)
    for k, (name, weight) in enumerate((stage.repeats or {}).items()):
        read = f"{name}.{REPEATS.name}"
        repeats_N = np.ones(len(rows), np.int64)
        if read in rows.column_names:
            repeats_N = rows[read].fill_null(1).to_numpy().astype(np.int64)
        sum_N += np.where(keep_NK[:, k], weight * repeats_N, 0)
    return sum_N


MOST_NAMES = 12  # 4,096 combinations
PYTHON = {"or": "|", "and": "&", "not": "~", "(": "(", ")": ")"}  # bind as these words do
TOKEN = re.compile(r"\s*(?:([()])|([A-Za-z][A-Za-z0-9_-]*)|(\S+))")
NAME = re.compile(r"(?!(?i:and|or|not)$)[A-Za-z][A-Za-z0-9_-]*")
DROPPED_BY, KEPT_BY = "dropped_by:", "kept_by:"


@cache
def condition(text: str) -> Condition:
    """Parses a condition; RecipeError if invalid, or if it keeps no row or one no select keeps."""
    words = [bracket or name or other for bracket, name, other in TOKEN.findall(text)]
    names = tuple(dict.fromkeys(word for word in words if NAME.fullmatch(word)))
    _check_number(names, "where")
    combination_C = np.arange(1 << len(names))
    value = {name: (combination_C >> k & 1).astype(bool) for k, name in enumerate(names)}
    holds_C = _read(text, words, value)
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
    """Returns the condition that at least one of the selects keeps the row."""
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
    """Returns the condition with the select to blame for each false combination: the first whose
    flip lies on a shortest path (fewest flips) to a true one."""
    combination_C = np.arange(len(holds_C))
    bit_K = 1 << np.arange(len(names))
    flips_C = np.where(holds_C, 0, len(names) + 1)
    for bit in bit_K:  # flips commute, so trying each bit once finds the fewest
        flips_C = np.minimum(flips_C, flips_C[combination_C ^ bit] + 1)
    blamed_C = (flips_C[combination_C[:, None] ^ bit_K] < flips_C[:, None]).argmax(axis=1)
    is_kept_C = (combination_C >> blamed_C & 1).astype(bool)
    codes = [f"{how}{name}" for name in names for how in (DROPPED_BY, KEPT_BY)]
    number_C = 2 * blamed_C + is_kept_C
    used, reason_C = np.unique(number_C[~holds_C], return_inverse=True)
    index_C = np.zeros(len(holds_C), np.int32)
    index_C[~holds_C] = reason_C
    return Condition(names, holds_C, tuple(codes[number] for number in used), index_C)


def _wrong(found: str, do: str) -> RecipeError:
    return RecipeError(found, "key `where`", do)


def _read(text: str, words: list[str], value: dict[str, Bools]) -> Bools:
    """Checks the order of the words, and lets Python evaluate them."""
    depth, is_open = 0, True  # whether a name, NOT or a bracket comes next
    for word in words:
        is_name, kind = word in value, word.lower()
        depth += (kind == "(") - (kind == ")")
        is_out_of_place = is_open != (is_name or kind in ("not", "(")) or depth < 0
        if is_out_of_place or not (is_name or kind in PYTHON):
            do = "join names of select stages with AND, OR, NOT and brackets: `best AND NOT blurry`"
            raise _wrong(f"`{word}` cannot stand where it does in `{text}`", do)
        is_open = not is_name and kind != ")"
    if is_open:
        raise _wrong(f"`{text}` breaks off", "name a select stage there")
    if depth:
        raise _wrong(f"a bracket is not closed in `{text}`", "close it")
    parts = (f"value[{word!r}]" if word in value else PYTHON[word.lower()] for word in words)
    try:
        return eval(" ".join(parts), {"value": value})  # nothing but these words, as just checked
    except (MemoryError, RecursionError, SyntaxError):
        # There are 200 brackets in each other, or 3,000 words.
        do = "combine some of them in a stage before this one"
        raise _wrong(f"`where` is too long or too deep, with {len(words):,} words", do) from None
