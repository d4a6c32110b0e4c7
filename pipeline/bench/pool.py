"""Opens the runs that all arms choose from, and checks that they share a pool and pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import is_places, read_places
from clipmill.metadata.schema import IMAGE, KEEP, SHA256, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.spec import RAW, Bench
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.export import ExportRequest, check_done, planned_export
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.planning.planned import Binding, PlannedStage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.rows import PoolShards
from clipmill.pipeline.run_folder.state import RunState, latest, summary

# Shapes: N rows of a shard.


@dataclass(frozen=True)
class Choice:
    """A stage of a run, read as an export of the rows that it keeps."""

    arm: str
    state: RunState
    planned: PlannedStage
    column: str = ""  # only rows whose text in this column is `value`, if set
    value: str = ""

    def leaving(self, shard: int, names: Sequence[str] = ()) -> pa.Table:
        """Returns the rows of a shard that an export takes, with further columns where bound."""
        stage: Any = self.planned.stage
        bound = self.planned.bindings[0]
        columns = dict.fromkeys([*stage.taking.tallied, self.column, *names])
        rows = self.rows.select([name for name in columns if name in bound]).table(shard)
        exported_N, _ = stage.taking(rows)
        rows = rows.filter(pa.array(exported_N))
        if not self.value:
            return rows
        return rows.filter(pc.equal(rows[self.column].cast(pa.string()), self.value))

    @property
    def rows(self) -> PoolShards:
        rows = self.state.inputs(self.planned)
        assert isinstance(rows, PoolShards)  # no export has two roots
        return rows

    @property
    def root(self) -> str:
        return self.planned.root

    @property
    def image(self) -> Binding:
        """Returns the stage that gives the pictures, and its column."""
        return self.planned.bindings[0][IMAGE.name]


@dataclass
class Runs:
    """The runs that arms come from, each opened once."""

    states: dict[str, RunState] = field(default_factory=dict)

    def choice(self, arm: str, run: str, stage: str, column: str = "", value: str = "") -> Choice:
        """Returns the rows that a stage keeps; RecipeError if it has none, or is incomplete."""
        state = self.states.get(run) or self.opened(arm, run)
        stages = state.plan.stages
        with_rows = [name for name, planned in stages.items() if planned.gives_rows]
        if stage not in with_rows:
            selects = [name for name in with_rows if stages[name].is_select]
            problem = f"no stage '{stage}' with rows" if stage in stages else f"no stage '{stage}'"
            do = did_you_mean(stage, [*selects, *with_rows], "stages with rows")
            raise RecipeError(problem, f"arm '{arm}', run {state.run}", do)
        columns = (column,) if column else ()
        request = ExportRequest(to="parquet", stage=stage, columns=columns)
        try:
            plan, name = planned_export(state.plan, stage, request)
            planned = plan.stages[name]
            check_done(state, planned)
        except RecipeError as error:
            raise RecipeError(
                error.args[0], f"arm '{arm}', run {state.run}", error.args[2]
            ) from None
        return Choice(arm, state, planned, column, value)

    def opened(self, arm: str, run: str) -> RunState:
        """Returns the state of a run; RecipeError if the run is at work."""
        storage = Storage(run)
        try:
            state = latest(run)
        except RecipeError as error:
            do = error.args[2].replace("check --run", "bring it back, or name another")
            raise RecipeError(error.args[0], f"arm '{arm}', run {storage}", do) from None
        if lease := lock.holder(storage):
            done = [summary(stage) for stage in state.stages.values()]
            raise RecipeError(
                f"a run that is at work: {done.count('done')} of {len(done)} stages are done,"
                f" {lease} works on",
                f"arm '{arm}', run {storage}",
                "wait until it has ended, or stop it",
            )
        self.states[run] = state
        return state


def choices_of(bench: Bench, runs: Runs) -> dict[str, Choice]:
    """Returns the arms that are stages of runs; RecipeError if two are of different pools."""
    choices = {
        name: runs.choice(name, source.run, source.stage, source.column, source.value)
        for name, source in bench.rows.items()
        if source.kind == "stage"
    }
    first, *others = choices.values()
    for other in others:
        _refuse_another_pool(first, other)
        _refuse_other_pictures(first, other)
    return choices


def parents_of(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Returns for each arm the nearest arm whose select decides before its own; else `raw`.

    The parent of a part (an arm with a `value`) is the arm with all rows of the same select.
    """
    selects = {name: _selects(choice) or [""] for name, choice in choices.items()}
    runs = {name: str(choice.state.run) for name, choice in choices.items()}
    whole = {(runs[name], selects[name][0]): name for name, c in choices.items() if not c.value}
    parents = {}
    for name, choice in choices.items():
        before = selects[name] if choice.value else selects[name][1:]
        arms = (whole.get((runs[name], select)) for select in before)
        parents[name] = next(filter(None, arms), RAW)
    return parents


def _selects(choice: Choice) -> list[str]:
    """Returns the selects that decide over an arm's rows, the last one first."""
    planned, names = choice.planned, []
    while planned.bindings and (deciding := planned.bindings[0].get(KEEP.name)):
        names.append(deciding[0])
        planned = choice.state.plan.stages[deciding[0]]
    return names


def are_of_one_pool(first: Choice, second: Choice) -> bool:
    """Returns whether the rows are the same ones in the same order."""
    if _digests(first, first.root) == _digests(second, second.root):
        return True
    pools = [stored(choice.state, choice.root, {}) for choice in (first, second)]
    sizes = [[pool.rows(shard) for shard in range(len(pool))] for pool in pools]
    return sizes[0] == sizes[1] and all(
        pools[0].table(shard)[UID.name].equals(pools[1].table(shard)[UID.name])
        for shard in range(len(pools[0]))
    )


def _refuse_another_pool(first: Choice, second: Choice) -> None:
    if are_of_one_pool(first, second):
        return
    pools = (stored(choice.state, choice.root, {}) for choice in (first, second))
    sizes = [
        f"{sum(map(pool.rows, range(len(pool)))):,} rows in {len(pool)} shards" for pool in pools
    ]
    raise RecipeError(
        f"arms '{first.arm}' and '{second.arm}' are of two pools: {sizes[0]} and {sizes[1]}, not"
        " the same rows in the same order",
        f"{first.state.run}, {second.state.run}",
        "name arms of one pool, read in the same way; one of another can stand beside them:"
        " --trusted RUN:STAGE",
    )


def _refuse_other_pictures(first: Choice, second: Choice) -> None:
    """Raises RecipeError if both have a row's picture, and the pictures differ."""
    if _digests(first, first.image[0]) == _digests(second, second.image[0]):
        return
    pools = []
    for choice in (first, second):
        stage, _ = choice.image
        writes = choice.state.plan.stages[stage].stage.writes
        if SHA256.name not in {column.name for column in writes}:
            return  # no digests to compare
        pools.append(stored(choice.state, choice.root, {SHA256.name: (stage, SHA256.name)}))
    both = differ = 0
    for shard in range(len(pools[0])):
        equal = pc.equal(*(pool.table(shard)[SHA256.name] for pool in pools)).drop_null()
        both += len(equal)
        differ += len(equal) - int(pc.sum(equal).as_py() or 0)
    if differ:
        raise RecipeError(
            f"arms '{first.arm}' and '{second.arm}' have other pictures: {differ:,} of {both:,}"
            " that both have differ in their SHA-256",
            f"'{first.image[0]}' of {first.state.run}, '{second.image[0]}' of {second.state.run}",
            "name arms of one run, so that all are trained on the same pictures",
        )


def _digests(choice: Choice, stage: str) -> list[str]:
    shards = choice.state.stages[stage].shards
    return [shards[shard].digest for shard in sorted(shards)]


@dataclass(frozen=True)
class RawRows:
    """The rows of the pool with a picture and a caption: those of the export."""

    pool: PoolShards  # uids only
    there: tuple[NDArray[np.bool_], ...]  # (N,) by shard
    held_out: list[str] = field(default_factory=list)  # fingerprint, digests of a ground's select

    @property
    def rows(self) -> int:
        return sum(int(np.count_nonzero(there_N)) for there_N in self.there)

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Yields by shard the uid, shard and position of these rows."""
        for shard, there_N in enumerate(self.there):
            yield shard, self.pool.table(shard).filter(pa.array(there_N))


def raw_rows(choice: Choice, export: Storage, ground: "Ground | None" = None) -> RawRows:
    """Returns the rows of the pool that an export holds, by its stored places; of these the ones
    of the ground, if there is one."""
    pool = stored(choice.state, choice.root, {})
    exported = tuple(np.zeros(pool.rows(shard), bool) for shard in range(len(pool)))
    outputs = Outputs(export)
    for name in filter(is_places, outputs.names):
        place_N2 = read_places(outputs, name)
        for shard in np.unique(place_N2[:, 0]):
            exported[shard][place_N2[place_N2[:, 0] == shard, 1]] = True
    if ground is None:
        return RawRows(pool, exported)
    home, is_home = ground
    kept = stored(choice.state, choice.root, {KEEP.name: (home.name, KEEP.name)})
    for shard, there_N in enumerate(exported):
        there_N &= pc.equal(kept.table(shard)[KEEP.name], is_home).fill_null(False).to_numpy()
    return RawRows(pool, exported, [home.fingerprint, *_digests(choice, home.name)])


Ground = tuple[PlannedStage, bool]  # a select; True: rows it keeps (hold in), False: that it drops


def ground_of(bench: Bench, choices: Sequence[Choice]) -> Ground:
    """Returns the rows that arms are limited to: `hold_in` those a select keeps, `hold_out` those
    it drops; without a verdict a row is neither. RecipeError if a stage before an arm learnt from
    rows that are dropped."""
    name, flag = bench.hold_out or bench.hold_in, "--hold-out" if bench.hold_out else "--hold-in"
    home = choices[0].state.plan.stages.get(name)
    for choice in choices:
        stages, where = choice.state.plan.stages, f"arm '{choice.arm}', {flag} {name}"
        if name not in stages or not stages[name].is_select or stages[name].root != choice.root:
            selects = [n for n, s in stages.items() if s.is_select and s.root == choice.root]
            do = did_you_mean(name, selects, "selects")
            raise RecipeError(f"no select '{name}' over its rows", where, do)
        check_done(choice.state, stages[name])
        if home is None or stages[name].fingerprint != home.fingerprint:
            do = "name arms of one run, or of runs in which it keeps the same"
            raise RecipeError(f"'{name}' differs between runs", where, do)
        for planned in _ancestors(choice.planned, stages) if bench.hold_out else ():
            if planned.stage.learns is not None and not _learns_at(name, planned, choice, stages):
                do = f"give it the rows that '{name}' keeps: after it, by `over: {name}.keep`, or"
                do += " by a value instead of a share; else leave the arm out"
                found = f"'{planned.name}' ({planned.uses}) learns from rows that are held out"
                raise RecipeError(found, where, do)
    assert home is not None
    return home, bool(bench.hold_in)


def _ancestors(planned: PlannedStage, stages: Mapping[str, PlannedStage]) -> list[PlannedStage]:
    found: dict[str, PlannedStage] = {}
    waiting = [*planned.needs]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = stages[name]
            waiting += stages[name].needs
    return [*found.values()]


def _learns_at(
    home: str, planned: PlannedStage, choice: Choice, stages: Mapping[str, PlannedStage]
) -> bool:
    """Returns whether all rows of the arm's pool that a stage learns from are kept by `home`."""
    reads: Iterable[dict[str, Binding]] = planned.bindings  # of one root each
    if planned.data:
        reads = [planned.mask] if planned.mask else stages[planned.data].bindings
    for read in reads:
        if all(stages[stage].root != choice.root for stage, _ in read.values()):
            continue
        deciding = read.get(planned.stage.learns or "")
        while deciding and deciding[0] != home:  # go back to the select before it
            deciding = next(iter(stages[deciding[0]].bindings), {}).get(KEEP.name)
        if deciding is None:
            return False
    return True
