"""Keep-rates by group: language, source of a union, domain, size of the picture; with a warning
where a group loses far more than the pool does.
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
from clipmill.metadata.stats import wilson
from clipmill.pipeline.ledger.rows.stored import binding
from clipmill.pipeline.ledger.selection.causes import KEPT, Cause
from clipmill.pipeline.planning.planned import Binding
from clipmill.pipeline.run_folder.state import RunState

# Shapes: N rows, G groups.

GROUPS = 20  # that have a name of their own
NAMES = 1 << 18  # of groups that are counted, as hosts: some 200 bytes each
MIN_SIDE = "min_side"  # in pixels, of the picture as it is stored
SIDES = (32, 64, 128, 200, 256, 384, 512, 1024)  # where a range of it begins
RANGES = (
    f"below {SIDES[0]} px",
    *(f"{low} to {high - 1} px" for low, high in pairwise(SIDES)),
    f"{SIDES[-1]} px and more",
)


def groupings(state: RunState, stage: str) -> dict[str, Binding]:
    """The stored columns that rows are grouped by: language, source of a union, domain, size."""
    columns = {"language": LANGUAGE.name, "source": SOURCE.name, "domain": URL.name}
    columns |= {"size": MIN_SIDE}
    bound = {name: binding(state, stage, column) for name, column in columns.items()}
    return {name: where for name, where in bound.items() if where is not None}


def group_of(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The group of each row, dictionary-encoded; of a URL its host, of a shorter side its range.

    Null without one.
    """
    if name == "size":
        side_N = column.fill_null(-1).to_numpy()
        index_N = np.searchsorted(SIDES, side_N, side="right").astype(np.int32)
        index = pa.array(index_N, mask=side_N < 0)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(index, RANGES)])
    named = host_of(column) if name == "domain" else column.cast(pa.string())
    return named.dictionary_encode()


def rows_of_groups(column: pa.ChunkedArray) -> dict[str, int]:
    """The rows of each group of a dictionary-encoded column, in the order of its dictionary."""
    rows: Counter[str] = Counter()
    for codes in column.chunks:
        count = np.bincount(codes.indices.drop_null().to_numpy(), minlength=len(codes.dictionary))
        rows.update(dict(zip(codes.dictionary.to_pylist(), count.tolist(), strict=True)))
    return rows


@dataclass(frozen=True)
class Groups:
    """G groups that are told apart: the largest of a pool by name, all others together, none."""

    names: list[str]  # (G,)

    @classmethod
    def largest(cls, rows: Mapping[str, int]) -> "Groups":
        """The largest of these by name; of as large ones those that come first."""
        named = sorted(rows, key=lambda name: -rows[name])[:GROUPS]
        return cls([*named, "(others)", "(none)"])

    def codes(self, column: pa.ChunkedArray) -> NDArray[np.int8]:
        """(N,) the place of each row's group, of a dictionary-encoded column."""
        others, none = len(self.names) - 2, len(self.names) - 1
        named = pa.array(self.names[:others], pa.string())
        parts = [np.zeros(0, np.int8)]
        for codes in column.chunks:
            place = pc.index_in(codes.dictionary, value_set=named).fill_null(others)
            short = np.append(place.to_numpy(), none).astype(np.int8)
            parts.append(short[codes.indices.fill_null(len(codes.dictionary)).to_numpy()])
        return np.concatenate(parts)

    def counts(self, rows_G: NDArray[np.int64]) -> dict[str, int]:
        """Rows by name, the largest first; of groups that have any."""
        order = np.argsort(-rows_G, kind="stable").tolist()
        return {self.names[i]: int(rows_G[i]) for i in order if rows_G[i]}


# Shapes: N rows of a shard, G groups.

LARGEST = 12  # groups of each kind that are shown, beside those warned of


@dataclass(frozen=True, kw_only=True)
class LostTo:
    """Rows that went for one reason of one stage."""

    stage: str
    reason: str
    rows: int


class Tally:
    """Counts rows by group and cause, shard by shard.

    Error: where there are more than NAMES groups, as of hosts, the rarer half are counted as one
    from there on, `others`. One of them that comes again is counted anew.
    """

    def __init__(self) -> None:
        self.groups: dict[str | None, int] = {}  # the place of each
        self.causes: dict[Cause, int] = {}
        self.rows_CG = np.zeros((0, 0), np.int64)  # by place, and zeros
        self.others: Counter[Cause] = Counter()
        self.other_groups = 0

    def __len__(self) -> int:
        """Groups that have rows."""
        return int(np.count_nonzero(self.rows_CG.any(axis=0))) + self.other_groups

    def count(
        self,
        group: pa.DictionaryArray,
        causes: Sequence[Cause],
        rows_CN: Sequence[NDArray[np.bool_]],
    ) -> None:
        """The group of each row, null where it has none, and which rows went for each cause."""
        names = [*group.dictionary.to_pylist(), *([None] if group.null_count else [])]
        code_N = group.indices.fill_null(len(names) - 1).to_numpy()
        rows_CG = [np.bincount(code_N[rows_N], minlength=len(names)) for rows_N in rows_CN]
        self._add(names, causes, rows_CG)

    def add(self, other: "Tally") -> None:
        """What another has counted."""
        rows_CG = other.rows_CG[: len(other.causes), : len(other.groups)]
        self._add(other.groups, other.causes, rows_CG)
        self.others.update(other.others)
        self.other_groups += other.other_groups

    def counted(self) -> Counter[tuple[str | None, Cause]]:
        """Rows of each group and cause that has some."""
        names, causes = list(self.groups), list(self.causes)
        return Counter(
            {
                (names[group], causes[cause]): int(self.rows_CG[cause, group])
                for cause, group in zip(*np.nonzero(self.rows_CG), strict=True)
            }
        )

    def _add(
        self,
        groups: Iterable[str | None],
        causes: Iterable[Cause],
        rows_CG: Iterable[NDArray[np.int64]],
    ) -> None:
        group_G = np.array([self.groups.setdefault(it, len(self.groups)) for it in groups], int)
        cause_C = [self.causes.setdefault(cause, len(self.causes)) for cause in causes]
        there = self.rows_CG.shape
        if len(self.causes) > there[0] or len(self.groups) > there[1]:
            grown_CG = np.zeros((2 * len(self.causes), 2 * len(self.groups)), np.int64)
            grown_CG[: there[0], : there[1]] = self.rows_CG
            self.rows_CG = grown_CG
        for cause, rows_G in zip(cause_C, rows_CG, strict=True):  # the same may come twice
            self.rows_CG[cause, group_G] += rows_G
        if len(self.groups) > NAMES:
            self._forget()

    def _forget(self) -> None:
        """Counts the rarer half of the groups as one."""
        names = list(self.groups)
        ranked = np.argsort(-self.rows_CG[:, : len(names)].sum(axis=0), kind="stable")
        stay, go = np.sort(ranked[: NAMES // 2]), ranked[NAMES // 2 :]
        for cause, place in self.causes.items():
            self.others[cause] += int(self.rows_CG[place, go].sum())
        self.other_groups += len(go)
        self.groups = {names[group]: place for place, group in enumerate(stay.tolist())}
        self.rows_CG = self.rows_CG[:, stay]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of one group, those kept, and their share with its 95 % interval, all in [0, 1].

    `warning` says how much more than the average it loses; empty where it does not. `lost_most` is
    what took most of the rows that it lost; null where it lost none, and of small groups together.
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
    """The kept share of all rows, the groups by size, and how many of all groups are warned of.

    `rules` are the rules that name what rows are grouped by, of any select, with the rows that they
    took; the one that took most first.
    """

    average: float
    groups: tuple[Group, ...]
    warnings: int
    rules: tuple[LostTo, ...]


def keep_rates(tally: Tally, rules: Collection[Cause] = ()) -> KeepRates:
    """Rows, kept share and warning of each group, the largest first; the small ones together.

    `rules` are the causes that name what is grouped by.

    Warned of is a group that loses more than twice the pool's share, or, where the pool loses so
    much that none can, keeps less than half of it; its 95 % interval (Wilson) must be clear of
    the bound, so that a handful of rows warns of nothing.
    """
    causes: dict[str | None, Counter[Cause]] = {}
    for (name, cause), count in tally.counted().items():
        causes.setdefault(name, Counter())[cause] += count
    every = sum(causes.values(), Counter(tally.others))
    average = every[KEPT] / every.total() if every else 0.0
    ranked = sorted(causes, key=lambda name: (-causes[name].total(), name or ""))
    groups = [_group(name, causes[name], average) for name in ranked]
    warned = [group for group in groups[LARGEST:] if group.warning][:LARGEST]
    shown = groups[:LARGEST] + warned
    rest = [group for group in groups[LARGEST:] if group not in warned]
    if count := len(rest) + tally.other_groups:
        kept = sum(group.kept for group in rest) + tally.others[KEPT]
        lost = sum(group.rows for group in rest) + tally.others.total() - kept
        others = _group(None, Counter({KEPT: kept, ("", "lost"): lost}), average)
        name = f"{count:,} {'other' if count == 1 else 'others'}"
        shown.append(replace(others, name=name, warning="", lost_most=None))
    taken = Counter({rule: every[rule] for rule in rules})
    return KeepRates(
        average=average,
        groups=tuple(shown),
        warnings=sum(bool(group.warning) for group in groups),
        rules=tuple(LostTo(stage=s, reason=r, rows=n) for (s, r), n in _ranked(taken)),
    )


def _ranked(causes: Counter[Cause]) -> list[tuple[Cause, int]]:
    """Those that took rows, the one that took most first."""
    return sorted((+causes).items(), key=lambda item: (-item[1], item[0]))


def _group(name: str | None, causes: Counter[Cause], average: float) -> Group:
    rows, kept = causes.total(), causes[KEPT]
    lost = _ranked(Counter({cause: n for cause, n in causes.items() if cause != KEPT}))
    share = kept / rows if rows else 0.0
    low, high = wilson(share, rows)
    warning = ""
    if 1 - high > 2 * (1 - average):
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
