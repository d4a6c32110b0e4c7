"""Keep-rates by group, with a warning where a group loses far more than the pool does."""

from collections import Counter
from dataclasses import dataclass, replace

from metadata.stats import wilson

LARGEST = 12  # groups of each kind that are shown, beside those warned of


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of one group, those kept, and their share with its 95 % interval, all in [0, 1].

    `warning` says how much more than the average it loses; empty where it does not.
    """

    name: str
    rows: int
    kept: int
    share: float
    low: float
    high: float
    warning: str


@dataclass(frozen=True, kw_only=True)
class KeepRates:
    """The kept share of all rows, the groups by size, and how many of all groups are warned of."""

    average: float
    groups: tuple[Group, ...]
    warnings: int


def keep_rates(tally: Counter[tuple[str | None, bool]]) -> KeepRates:
    """Rows, kept share and warning of each group, the largest first; the small ones together.

    Warned of is a group that loses more than twice the pool's share, or, where the pool loses so
    much that none can, keeps less than half of it; its 95 % interval (Wilson) must be clear of
    the bound, so that a handful of rows warns of nothing.
    """
    names = {name for name, _ in tally}
    rows = {name: tally[name, True] + tally[name, False] for name in names}
    total = sum(rows.values())
    average = sum(tally[name, True] for name in names) / total if total else 0.0
    ranked = sorted(names, key=lambda name: (-rows[name], name or ""))
    groups = [_group(name, tally[name, True], rows[name], average) for name in ranked]
    warned = [group for group in groups[LARGEST:] if group.warning][:LARGEST]
    shown = groups[:LARGEST] + warned
    rest = [group for group in groups[LARGEST:] if group not in warned]
    if rest:
        kept, count = sum(g.kept for g in rest), sum(g.rows for g in rest)
        others = _group(None, kept, count, average)
        shown.append(replace(others, name=f"{len(rest):,} others", warning=""))
    return KeepRates(
        average=average,
        groups=tuple(shown),
        warnings=sum(bool(group.warning) for group in groups),
    )


def _group(name: str | None, kept: int, rows: int, average: float) -> Group:
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
    )
