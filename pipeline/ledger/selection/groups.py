"""Computes keep-rates by group (language, source of a union, domain, picture size), and warns if a
group loses far more than the pool does.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.hosts import host_of
from clipmill.metadata.schema import LANGUAGE, SOURCE, URL
from clipmill.metadata.stats import wilson, wilson_bounds
from clipmill.pipeline.ledger.rows.stored import binding
from clipmill.pipeline.ledger.selection.causes import KEPT, Cause
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows, G groups.

GROUPS = 20  # named groups; the rest is counted as others
NAMES = 1 << 18  # most groups that are counted, such as hosts: about 200 bytes each
MIN_SIDE = "min_side"  # column: shorter side of the stored picture in pixels
SIDES = (32, 64, 128, 200, 256, 384, 512, 1024)  # lower ends of its ranges
RANGES = (
    f"below {SIDES[0]} px",
    *(f"{low} to {high - 1} px" for low, high in pairwise(SIDES)),
    f"{SIDES[-1]} px and more",
)


def groupings(state: RunState, stage: str) -> dict[str, Binding]:
    """Returns the stored columns for grouping rows: language, source of a union, domain, size."""
    columns = {"language": LANGUAGE.name, "source": SOURCE.name, "domain": URL.name}
    columns |= {"size": MIN_SIDE}
    bound = {name: binding(state, stage, column) for name, column in columns.items()}
    return {name: where for name, where in bound.items() if where is not None}


def group_of(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns each row's group, dictionary-encoded: a URL's host, a shorter side's range.

    Null if the value is missing.
    """
    if name == "size":
        side_N = column.fill_null(-1).to_numpy()
        index_N = np.searchsorted(SIDES, side_N, side="right").astype(np.int32)
        index = pa.array(index_N, mask=side_N < 0)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(index, RANGES)])
    named = host_of(column) if name == "domain" else column.cast(pa.string())
    return named.dictionary_encode()


def rows_of_groups(column: pa.ChunkedArray) -> dict[str, int]:
    """Counts the rows of each group of a dictionary-encoded column, in dictionary order."""
    rows: Counter[str] = Counter()
    for codes in column.chunks:
        count = np.bincount(codes.indices.drop_null().to_numpy(), minlength=len(codes.dictionary))
        rows.update(dict(zip(codes.dictionary.to_pylist(), count.tolist(), strict=True)))
    return rows


@dataclass(frozen=True)
class Groups:
    """The G groups counted separately: a pool's largest by name, all others together, and none."""

    names: list[str]  # (G,)

    @classmethod
    def largest(cls, rows: Mapping[str, int]) -> "Groups":
        """Returns the largest groups by name; ties go to the first."""
        named = sorted(rows, key=lambda name: -rows[name])[:GROUPS]
        return cls([*named, "(others)", "(none)"])

    def codes(self, column: pa.ChunkedArray) -> NDArray[np.int8]:
        """Returns (N,) the index of each row's group, for a dictionary-encoded column."""
        others, none = len(self.names) - 2, len(self.names) - 1
        named = pa.array(self.names[:others], pa.string())
        parts = [np.zeros(0, np.int8)]
        for codes in column.chunks:
            place = pc.index_in(codes.dictionary, value_set=named).fill_null(others)
            short = np.append(place.to_numpy(), none).astype(np.int8)
            parts.append(short[codes.indices.fill_null(len(codes.dictionary)).to_numpy()])
        return np.concatenate(parts)

    def counts(self, rows_G: NDArray[np.int64]) -> dict[str, int]:
        """Returns rows by group name, the largest first, without empty groups."""
        order = np.argsort(-rows_G, kind="stable").tolist()
        return {self.names[i]: int(rows_G[i]) for i in order if rows_G[i]}


# Shapes: N rows of a shard, G groups.

LARGEST = 12  # groups of each kind that are shown, besides those with warnings


@dataclass(frozen=True, kw_only=True)
class LostTo:
    """Rows lost for one reason of one stage."""

    stage: str
    reason: str
    rows: int


class Tally:
    """Counts rows by group and cause, shard by shard.

    Error: past NAMES groups, such as hosts, the rarer half are counted together from there on, as
    `others`. A forgotten group that comes again is counted anew.
    """

    def __init__(self) -> None:
        self.groups: dict[str | None, int] = {}  # the column of each in rows_CG
        self.causes: dict[Cause, int] = {}
        self.rows_CG = np.zeros((0, 0), np.int64)  # by index, with spare zeros
        self.others: Counter[Cause] = Counter()
        self.other_groups = 0

    def __len__(self) -> int:
        """Returns the number of groups that have rows."""
        return int(np.count_nonzero(self.rows_CG.any(axis=0))) + self.other_groups

    def count(
        self,
        group: pa.DictionaryArray,
        causes: Sequence[Cause],
        rows_CN: Sequence[NDArray[np.bool_]],
    ) -> None:
        """Adds rows: their groups, null for none, and a mask of rows for each cause."""
        names = [*group.dictionary.to_pylist(), *([None] if group.null_count else [])]
        code_N = group.indices.fill_null(len(names) - 1).to_numpy()
        rows_CG = [np.bincount(code_N[rows_N], minlength=len(names)) for rows_N in rows_CN]
        self._add(names, causes, rows_CG)

    def add(self, other: "Tally") -> None:
        """Adds the counts of another tally."""
        rows_CG = other.rows_CG[: len(other.causes), : len(other.groups)]
        self._add(other.groups, other.causes, rows_CG)
        self.others.update(other.others)
        self.other_groups += other.other_groups

    def _add(
        self,
        groups: Iterable[str | None],
        causes: Iterable[Cause],
        rows_CG: Iterable[NDArray[np.int64]],
    ) -> None:
        group_G = np.array([self.groups.setdefault(name, len(self.groups)) for name in groups], int)
        cause_C = [self.causes.setdefault(cause, len(self.causes)) for cause in causes]
        shape = self.rows_CG.shape
        if len(self.causes) > shape[0] or len(self.groups) > shape[1]:
            grown_CG = np.zeros((2 * len(self.causes), 2 * len(self.groups)), np.int64)
            grown_CG[: shape[0], : shape[1]] = self.rows_CG
            self.rows_CG = grown_CG
        for cause, rows_G in zip(cause_C, rows_CG, strict=True):  # a cause may occur twice
            self.rows_CG[cause, group_G] += rows_G
        if len(self.groups) > NAMES:
            self._forget()

    def _forget(self) -> None:
        """Counts the rarer half of the groups as one."""
        names = list(self.groups)
        ranked = np.argsort(-self.rows_CG[:, : len(names)].sum(axis=0), kind="stable")
        frequent, rare = np.sort(ranked[: NAMES // 2]), ranked[NAMES // 2 :]
        for cause, place in self.causes.items():
            self.others[cause] += int(self.rows_CG[place, rare].sum())
        self.other_groups += len(rare)
        self.groups = {names[group]: place for place, group in enumerate(frequent.tolist())}
        self.rows_CG = self.rows_CG[:, frequent]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of one group, those kept, and their share with its 95 % interval, all in [0, 1].

    `warning` compares its loss with the average; empty without cause. `lost_most` is the reason
    for most of its lost rows; null if it lost none, and for small groups together.
    """

    name: str
    rows: int
    kept: int
    share: float
    low: float
    high: float
    warning: str
    lost_most: LostTo | None


@dataclass(frozen=True, kw_only=True)
class KeepRates:
    """The kept share of all rows, groups by size, and the number of groups with warnings.

    `rules` are the rules of any select that name the grouping, with the rows that they dropped,
    largest first.
    """

    average: float
    groups: tuple[Group, ...]
    warnings: int
    rules: tuple[LostTo, ...]


def keep_rates(tally: Tally, rules: Collection[Cause] = ()) -> KeepRates:
    """Returns rows, kept share and warning of each group, largest first; small ones together.

    `rules` are the causes that name the grouping's column.

    A group gets a warning if it loses more than twice the pool's share, or, if the pool loses too
    much for that, keeps less than half of the pool's share; its 95 % interval (Wilson) must be
    clear of the bound, so that a handful of rows gives no warning.
    """
    names, causes = list(tally.groups), list(tally.causes)
    rows_CG = tally.rows_CG[: len(causes), : len(names)]
    totals = tally.others + Counter(dict(zip(causes, rows_CG.sum(axis=1).tolist(), strict=True)))
    average = totals[KEPT] / totals.total() if totals else 0.0
    rows_G = rows_CG.sum(axis=0)
    kept_G = rows_CG[tally.causes[KEPT]] if KEPT in tally.causes else np.zeros_like(rows_G)
    share_G = kept_G / np.maximum(rows_G, 1)
    _, high_G = wilson_bounds(share_G, rows_G)
    is_far_G = (1 - high_G > 2 * (1 - average)) | (high_G < average / 2)
    is_warned_G = is_far_G & (share_G < average)  # where all is kept, 1 - high may be rounding
    ranked = sorted(np.flatnonzero(rows_G).tolist(), key=lambda g: (-rows_G[g], names[g] or ""))
    warned = [g for g in ranked[LARGEST:] if is_warned_G[g]][:LARGEST]
    chosen = [*ranked[:LARGEST], *warned]
    columns = (Counter(dict(zip(causes, rows_CG[:, g].tolist(), strict=True))) for g in chosen)
    shown = [_group(names[g], rows, average) for g, rows in zip(chosen, columns, strict=True)]
    if count := len(ranked) - len(chosen) + tally.other_groups:
        rows = totals.total() - int(rows_G[chosen].sum())
        kept = totals[KEPT] - int(kept_G[chosen].sum())
        name = f"{count:,} {'other' if count == 1 else 'others'}"
        others = _group(name, Counter({KEPT: kept, ("", "lost"): rows - kept}), average)
        shown.append(replace(others, warning="", lost_most=None))
    dropped = Counter({rule: totals[rule] for rule in rules})
    return KeepRates(
        average=average,
        groups=tuple(shown),
        warnings=int(np.count_nonzero(is_warned_G)),
        rules=tuple(LostTo(stage=s, reason=r, rows=n) for (s, r), n in _ranked(dropped)),
    )


def _ranked(causes: Counter[Cause]) -> list[tuple[Cause, int]]:
    """Returns the causes with rows, largest first."""
    return sorted((+causes).items(), key=lambda item: (-item[1], item[0]))


def _group(name: str | None, causes: Counter[Cause], average: float) -> Group:
    rows, kept = causes.total(), causes[KEPT]
    lost = _ranked(Counter({cause: n for cause, n in causes.items() if cause != KEPT}))
    share = kept / rows if rows else 0.0
    low, high = wilson(share, rows)
    warning = ""
    if share < average and 1 - high > 2 * (1 - average):
        warning = f"loses {(1 - share) / (1 - average):.1f} times the average"
    elif high < average / 2:
        warning = f"keeps {share / average:.2f} times the average" if kept else "keeps none"
    return Group(
        name=name or "(none)",
        rows=rows,
        kept=kept,
        share=share,
        low=low,
        high=high,
        warning=warning,
        lost_most=next((LostTo(stage=s, reason=r, rows=n) for (s, r), n in lost), None),
    )
