"""How a run ended, in numbers: the rows it kept, what took the others, and what may yet be mended.

Rows and reasons come from the records. First causes open a small column of each shard, so of a
large pool the select's own reasons stand in their place: no run waits for its summary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from clipmill.metadata.passes import NOT_SELECTED
from clipmill.pipeline.ledger.findings.notes import notes
from clipmill.pipeline.ledger.selection.causes import Cause, causes
from clipmill.pipeline.ledger.selection.exports import Export, exports
from clipmill.pipeline.ledger.selection.funnel import is_end
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.ran import newest_name
from clipmill.pipeline.run_folder.state import RunState

MOST_ROWS, MOST_SHARDS = (
    2_000_000,
    500,
)  # of a pool whose first causes are looked for: half a second
READERS = 8  # threads, that wait for a store


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Rows that one stage lost for one reason; `advice`: what the stage says to do about it."""

    stage: str
    reason: str
    rows: int
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A select stage that no later one builds on, or a last stage of rows: `rows` = `kept` + lost.

    `lost` has the most first, by first cause where `is_first`, else by the stage's own reasons.
    Rows outside of its `only:` are not counted.
    """

    stage: str
    rows: int
    kept: int
    lost: tuple[Lost, ...]
    is_first: bool


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Rows of one stage that failed for reasons which pass: `--retry` tries them again."""

    stage: str
    rows: int  # that it was given
    reasons: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run left; while a stage of rows is not complete, nothing has ended.

    `report` is null where none lies beside the run folder, or one from before. `set_aside` counts
    shards that failed as a whole, by stage; `notes` is what stages say of what they were given,
    and of models that score what they learnt from; `never` are reasons to be tried again that no
    row has ever failed for.
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

    @property
    def empty(self) -> tuple[str, ...]:
        """Stages that kept no row, exports that hold none."""
        return (
            *(ending.stage for ending in self.endings if not ending.kept),
            *(export.stage for export in self.exports if export.exported == 0),
        )


def summary(state: RunState, seconds: float | None = None, retry: Iterable[str] = ()) -> Summary:
    """What a run of so many seconds, which was to `retry` reasons, left."""
    stages = [stage for stage in state.stages.values() if stage.planned.gives_rows]
    done = [stage.planned for stage in stages if stage.complete]
    is_whole = len(done) == len(stages)
    failures = {
        name: sum(failure is not None for failure in stage.failures.values())
        for name, stage in state.stages.items()
    }
    return Summary(
        run=str(state.run),
        seconds=seconds,
        stages=len(state.stages),
        endings=tuple(_endings(state, done)) if is_whole else (),
        exports=exports(state),
        passing=tuple(_passing(state)),
        set_aside={name: count for name, count in failures.items() if count},
        never=tuple(reason for reason in retry if not _occurred(state, reason)),
        notes=notes(state),
        report=_report(state),
    )


def _report(state: RunState) -> str | None:
    """The page that `curate` and `report` write, where nothing of the run is newer than it."""
    page = Path(f"{state.run.path}.html")
    if not state.run.is_local or not page.exists():
        return None
    parts = [Path(stage.folder.path) for stage in state.stages.values()]
    parts.append(Path(state.run.path, "recipes", newest_name(state.run) or ""))
    newest = max((part.stat().st_mtime_ns for part in parts if part.exists()), default=0)
    return str(page) if page.stat().st_mtime_ns >= newest else None


def _endings(state: RunState, done: list[PlannedStage]) -> Iterator[Ending]:
    """The selects that no other builds on; and stages beside them without a value for any row.

    Where there is neither, the last stage of rows.
    """
    ends = [planned for planned in done if is_end(planned, done)]
    told = {name for end in ends for name in _line(state, end.name)}
    for planned in done:
        if planned.name not in told and not _counts(state, planned.name)[""]:
            ends.append(planned)
            told |= {it.name for it in done if planned.name in _line(state, it.name)}
    for end in ends or done[-1:]:
        yield _ending(state, end)


def _line(state: RunState, name: str) -> set[str]:
    """The stages that a stage is made of, itself included."""
    line = {name}
    for planned in reversed(state.plan.stages.values()):
        if planned.name in line:
            line |= set(planned.needs)
    return line


def _counts(state: RunState, name: str) -> Counter[str]:
    """Rows of a stage by reason today, without those outside of its `only:`.

    Of a root all are fine: a row that lacks a value there is lost by the stage that asks for it.
    """
    shards = state.stages[name].shards
    if state.plan.stages[name].is_root:
        return Counter({"": shards.rows})
    counts: Counter[str] = Counter({"": 0})
    for shard in shards:
        counts.update(state.counts(name, shard))
    counts.pop(NOT_SELECTED, None)
    return counts


def _ending(state: RunState, planned: PlannedStage) -> Ending:
    counts = _counts(state, planned.name)
    rows, kept = counts.total(), counts.pop("")
    root = state.stages[planned.root]
    is_small = rows <= MOST_ROWS and len(root.shards) <= MOST_SHARDS
    is_first = planned.is_select and is_small
    own: Counter[Cause] = Counter({(planned.name, reason): n for reason, n in counts.items()})
    lost = _first_causes(state, planned) if is_first and own else own
    return Ending(
        stage=planned.name,
        rows=rows,
        kept=kept,
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
    """The rows that a select stage dropped, by what lost them first."""

    def of(shard: int) -> Counter[Cause]:
        found: Counter[Cause] = Counter()
        for stage, code, rows in causes(ShardReasons(state, end.root, shard), end.name):
            found[stage, code] += pc.sum(rows).as_py() or 0
        return found

    total: Counter[Cause] = Counter()
    with ThreadPoolExecutor(READERS) as readers:
        for found in readers.map(of, sorted(state.stages[end.root].shards)):
            total.update(found)
    return total


def _passing(state: RunState) -> Iterator[Passing]:
    for name, stage in state.stages.items():
        counts = _counts(state, name) if stage.planned.stage.transient else Counter()
        reasons = {r: counts[r] for r in stage.planned.stage.transient if counts[r]}
        if reasons:
            yield Passing(stage=name, rows=counts.total(), reasons=reasons)


def _occurred(state: RunState, reason: str) -> bool:
    """Whether any row ever failed for it: a `crashed` shard is no row."""
    return reason == "crashed" or any(reason in it.codes for it in state.stages.values())
