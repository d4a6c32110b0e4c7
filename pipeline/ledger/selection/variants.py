"""Lists the variants of a run folder: their differences, rows kept, and unfinished stages.

Rows are counted from the records. A file is opened only if a stage after the last select failed
rows, which are not kept then, or if several passes made a shard.
"""

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow.compute as pc

from clipmill.metadata.scan import Scan
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError
from clipmill.pipeline.ledger.rows.ahead import ahead
from clipmill.pipeline.ledger.selection.causes import failed_later, is_end, later_stages
from clipmill.pipeline.ledger.selection.reasons import ShardReasons
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.ran import ran_names
from clipmill.pipeline.run_folder.state import RunState, StageState, plan_of, seen_through, summary
from clipmill.pipeline.run_folder.variants import Changes, Variant, changes, run_again, variants


@dataclass(frozen=True, kw_only=True)
class KeptBy:
    """A final select, and its rows, as the funnel counts them."""

    stage: str
    rows: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One variant. `changes` are those since the previous one; `ends` are of its complete stages.

    `left` maps incomplete stages to their progress: `to be made again` if their inputs have
    changed since, as another variant computed rows there. `refused` says why the recipe makes no
    plan now; then nothing is known of its stages.
    """

    number: int
    recipe: str
    first_ran: str
    last_ran: str
    is_last: bool
    changes: Changes
    stages: int
    left: dict[str, str]
    ends: tuple[KeptBy, ...]
    refused: str = ""
    again: str = ""  # the command that makes the stages of `left`


@dataclass(frozen=True, kw_only=True)
class RunVariants:
    """The variants of a run folder, by number; `unreadable` recipes have none.

    `working` names the current holder of the run.
    """

    run: str
    variants: tuple[Tried, ...]
    unreadable: tuple[str, ...] = ()
    working: str = ""


def tried(uri: str) -> RunVariants:
    """Returns every variant; each stage folder is scanned once."""
    run = Storage(uri)
    known, unreadable = variants(run)
    lease = lock.holder(run)
    scans: dict[str, Scan] = {}
    before = [known[0], *known] if known else []
    return RunVariants(
        run=str(run),
        variants=tuple(
            _tried(run, variant, changes(previous.ran, variant.ran), scans)
            for previous, variant in zip(before, known, strict=False)
        ),
        unreadable=tuple(unreadable),
        working=str(lease) if lease else "",
    )


def _tried(run: Storage, variant: Variant, differs: Changes, scans: dict[str, Scan]) -> Tried:
    refused, state = "", None
    try:
        state = seen_through(plan_of(variant.ran, run), run, scans)
    except ClipmillError as error:  # a missing own stage, or a setting of another version
        refused = f"{error.args[0]} ({error.args[1]})"
    stages = state.stages if state else {}
    left = {name: _so_far(stage) for name, stage in stages.items() if not stage.complete}
    return Tried(
        number=variant.number,
        recipe=variant.ran["name"],
        first_ran=variant.first_ran,
        last_ran=variant.last_ran,
        is_last=variant.is_last,
        changes=differs,
        stages=len(variant.ran["stages"]),
        left=left,
        ends=kept_by_ends(state) if state else (),
        refused=refused,
        again=run_again(run, variant) if left else "",
    )


def sharing(plan: Plan, run: Storage, retry: Collection[str]) -> list[Variant]:
    """Returns the other variants, whole now, that a retry makes stale: it computes rows anew of a
    stage that they share, and they have stages of their own."""
    if not retry or not ran_names(run):
        return []
    stages = RunState(plan, run).stages
    shared = {
        stage.planned.folder
        for stage in stages.values()
        if {*retry} & {*stage.planned.stage.transient} & {*stage.codes}
    }
    own = {stage.planned.folder for stage in stages.values()}
    theirs = [(variant, {*variant.ran["folders"].values()}) for variant in variants(run)[0]]
    return whole(
        [variant for variant, folders in theirs if shared & folders and folders - own], run
    )


def whole(listed: Iterable[Variant], run: Storage) -> list[Variant]:
    """Returns the variants whose stages are all complete."""
    found, scans = [], dict[str, Scan]()
    for variant in listed:
        with contextlib.suppress(ClipmillError):
            stages = seen_through(plan_of(variant.ran, run), run, scans).stages
            found += [variant] if all(stage.complete for stage in stages.values()) else []
    return found


def _so_far(stage: StageState) -> str:
    """Returns a stage's progress; `to be made again` if all its results are of outdated inputs."""
    is_stale = not stage.shards and (stage.scan.manifest or stage.scan.records)
    return "to be made again" if is_stale else summary(stage)


def kept_by_ends(state: RunState) -> tuple[KeptBy, ...]:
    """Returns rows and kept rows of each end among the complete stages."""
    done = state.row_stages
    return tuple(_kept_by(state, planned) for planned in done if is_end(planned, done))


def _kept_by(state: RunState, planned: PlannedStage) -> KeptBy:
    root, end = planned.root, planned.name
    shards, later = state.stages[root].shards, later_stages(state, end)

    def read(shard: int) -> int:
        reasons = ShardReasons(state, root, shard)
        lost = sum(pc.sum(lost).as_py() for _, _, lost in failed_later(reasons, end, later))
        return reasons.counts(end).get("", 0) - int(lost)

    rows = state.stages[end].shards.rows
    return KeptBy(stage=end, rows=rows, kept=sum(ahead(state.run, read, sorted(shards))))
