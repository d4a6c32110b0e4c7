"""Summarises how a run ended: rows kept, first causes of losses, and failures to retry.

Rows and reasons come from the records. First causes open a small column of each shard, and counts
of texts its texts; a large pool goes without, so that no run waits for its summary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType

import pyarrow.compute as pc

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.pipeline.ledger.findings.notes import notes
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.rows.columns import line_of
from clipmill.pipeline.ledger.selection.causes import Cause, is_end, later_stages, losses
from clipmill.pipeline.ledger.selection.exports import Export, exports
from clipmill.pipeline.ledger.selection.reasons import ShardReasons, counts_of
from clipmill.pipeline.ledger.selection.texts import StageTexts, has_texts, stage_texts
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.ran import newest_name
from clipmill.pipeline.run_folder.state import RunState, StageState

# Largest pool whose first causes are counted, in half a second. Texts, a million a second and a
# shard at a time, are counted of any at a run's end, on a page of the explorer's of such a one.
MOST_ROWS, MOST_SHARDS = 2_000_000, 500
NEEDS = attrgetter("needs")


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Rows that one stage lost for one reason; `advice`: the stage's own advice on it."""

    stage: str
    reason: str
    rows: int
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A final select, or a last stage of rows: `rows` = `kept` + lost.

    A select is final if no later one builds on it. `lost` is ordered by rows, most first: first
    causes if `is_first`, as the funnel counts them, else the stage's own reasons, and rows that a
    later stage failed count as kept. Rows outside `only:` are not counted.
    """

    stage: str
    rows: int
    kept: int
    lost: tuple[Lost, ...]
    is_first: bool


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Rows of one stage that failed for transient reasons: `--retry` tries them again."""

    stage: str
    rows: int  # the stage's input
    reasons: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a run; `endings` is empty until all stages of rows are complete.

    `texts` are those of each stage. `stale` are variants that a retry has made stale, each with the
    command that makes it again. `report` is null if the page beside the run folder is missing or
    outdated. `set_aside` counts failed shards, by stage; `notes` are the stages' remarks on their
    input, and on models that score their own training data; `never` are reasons given to `--retry`
    that no row has ever failed for.
    """

    run: str
    seconds: float | None
    stages: int
    endings: tuple[Ending, ...]
    exports: tuple[Export, ...]
    passing: tuple[Passing, ...]
    set_aside: dict[str, int]
    never: tuple[str, ...]
    notes: dict[str, tuple[str, ...]]
    report: str | None
    texts: tuple[StageTexts, ...] = ()
    stale: tuple[tuple[int, str], ...] = ()

    @property
    def empty(self) -> tuple[str, ...]:
        """Returns the stages that kept no row and the exports without rows."""
        return (
            *(ending.stage for ending in self.endings if not ending.kept),
            *(export.stage for export in self.exports if export.exported == 0),
        )


def summary(
    state: RunState,
    seconds: float | None = None,
    retry: Iterable[str] = (),
    stale: Mapping[int, str] = MappingProxyType({}),
) -> Summary:
    """Returns what a run of `seconds` left, which was to `retry` these reasons."""
    return Summary(
        run=str(state.run),
        seconds=seconds,
        stages=len(state.stages),
        endings=endings(state),
        exports=exports(state),
        passing=tuple(_passing(state)),
        set_aside={name: stage.failed for name, stage in state.stages.items() if stage.failed},
        never=tuple(
            reason
            for reason in retry  # `crashed` is a shard's
            if reason != "crashed" and not any(reason in s.codes for s in state.stages.values())
        ),
        notes=notes(state),
        report=_report(state),
        texts=stage_texts(state),
        stale=tuple(stale.items()),
    )


def texts_if_few(state: RunState) -> tuple[StageTexts, ...] | None:
    """Returns the texts of each stage; None if some stage has texts in a large pool."""
    roots = [stage for stage in state.stages.values() if stage.planned.is_root]
    return stage_texts(state) if all(map(_is_small, roots)) or not has_texts(state) else None


def _is_small(root: StageState) -> bool:
    return root.shards.rows <= MOST_ROWS and len(root.shards) <= MOST_SHARDS


def _report(state: RunState) -> str | None:
    """Returns the page of `curate` or `report`, unless something of the run is newer."""
    page = Path(f"{state.run.path}.html")
    if not state.run.is_local or not page.exists():
        return None
    parts = [Path(stage.folder.path) for stage in state.stages.values()]
    parts.append(Path(state.run.path, "recipes", newest_name(state.run) or ""))
    newest = max((part.stat().st_mtime_ns for part in parts if part.exists()), default=0)
    return str(page) if page.stat().st_mtime_ns >= newest else None


def endings(state: RunState) -> tuple[Ending, ...]:
    """Returns final selects, and stages outside their lineage without a value for any row.

    If there are none, the last stage of rows; nothing until all stages of rows are complete.
    """
    done = state.row_stages
    if len(done) < sum(planned.gives_rows for planned in state.plan.stages.values()):
        return ()
    ends = [planned for planned in done if is_end(planned, done)]
    covered = {name for end in ends for name in line_of(state.plan, end.name, NEEDS)}
    for planned in done:
        if planned.name not in covered and not _counts(state, planned.name)[""]:
            ends.append(planned)
            covered |= {n.name for n in done if planned.name in line_of(state.plan, n.name, NEEDS)}
    return tuple(_ending(state, end) for end in ends or done[-1:])


def _counts(state: RunState, name: str) -> Counter[str]:
    """Counts a stage's rows by current reason, without those outside its `only:`.

    All rows of a root are fine: the stage that needs a missing value there loses the row.
    """
    if state.plan.stages[name].is_root:
        return Counter({"": state.stages[name].shards.rows})
    counts = counts_of(state, name)
    counts.pop(NOT_SELECTED, None)
    return counts


def _ending(state: RunState, planned: PlannedStage) -> Ending:
    counts = _counts(state, planned.name)
    rows = counts.total()
    is_first = planned.is_select and _is_small(state.stages[planned.root])
    lost = Counter({(planned.name, reason): n for reason, n in counts.items() if reason})
    before = line_of(state.plan, planned.name, NEEDS) - {planned.name}
    others = {*before, *later_stages(state, planned.name)}
    if is_first and any(any(state.stages[name].codes) for name in others):
        lost = _first_causes(state, planned)  # else all are its own
    return Ending(
        stage=planned.name,
        rows=rows,
        kept=rows - lost.total(),
        lost=tuple(
            Lost(
                stage=stage,
                reason=reason,
                rows=count,
                advice=state.plan.stages[stage].stage.advice.get(reason, ""),
            )
            for (stage, reason), count in lost.most_common()
        ),
        is_first=is_first,
    )


def _first_causes(state: RunState, end: PlannedStage) -> Counter[Cause]:
    """Counts the rows that a select stage dropped, or a later one failed, by first cause."""
    later = later_stages(state, end.name)

    def lost(shard: int) -> list[tuple[Cause, int]]:
        found = losses(ShardReasons(state, end.root, shard), end.name, later)
        return [((stage, code), pc.sum(rows).as_py() or 0) for stage, code, rows in found]

    total: Counter[Cause] = Counter()
    for cause, rows in chain.from_iterable(ahead(state.run, lost, state.stages[end.root].shards)):
        total[cause] += rows
    return total


def _passing(state: RunState) -> Iterator[Passing]:
    for name, stage in state.stages.items():
        counts = _counts(state, name) if stage.planned.stage.transient else Counter()
        reasons = {r: counts[r] for r in stage.planned.stage.transient if counts[r]}
        if reasons:
            yield Passing(stage=name, rows=counts.total(), reasons=reasons)
