"""Keep-rates by group, with a warning where a group loses far more than the pool does."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from metadata.stats import wilson
from pipeline.ledger.causes import KEPT, Cause

LARGEST = 12  # groups of each kind that are shown, beside those warned of


@dataclass(frozen=True, kw_only=True)
class LostTo:
    """Rows that went for one reason of one stage."""

    stage: str
    reason: str
    rows: int


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


def keep_rates(
    tally: Counter[tuple[str | None, Cause]], rules: Collection[Cause] = ()
) -> KeepRates:
    """Rows, kept share and warning of each group, the largest first; the small ones together.

    `tally` counts each group's rows by the cause that they went for, `rules` are the causes that
    name what is grouped by.

    Warned of is a group that loses more than twice the pool's share, or, where the pool loses so
    much that none can, keeps less than half of it; its 95 % interval (Wilson) must be clear of
    the bound, so that a handful of rows warns of nothing.
    """
    causes: dict[str | None, Counter[Cause]] = {}
    for (name, cause), count in tally.items():
        causes.setdefault(name, Counter())[cause] += count
    total = tally.total()
    average = sum(of[KEPT] for of in causes.values()) / total if total else 0.0
    ranked = sorted(causes, key=lambda name: (-causes[name].total(), name or ""))
    groups = [_group(name, causes[name], average) for name in ranked]
    warned = [group for group in groups[LARGEST:] if group.warning][:LARGEST]
    shown = groups[:LARGEST] + warned
    rest = [group for group in groups[LARGEST:] if group not in warned]
    if rest:
        kept, count = sum(g.kept for g in rest), sum(g.rows for g in rest)
        others = _group(None, Counter({KEPT: kept, ("", "lost"): count - kept}), average)
        name = f"{len(rest):,} {'other' if len(rest) == 1 else 'others'}"
        shown.append(replace(others, name=name, warning="", lost_most=None))
    taken = Counter({rule: sum(of[rule] for of in causes.values()) for rule in rules})
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
