"""Some rows of a stage that asks a model, asked for before the run: what the others will take.

The answers lie in the run folder, where the run finds them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.record import ShardState
from clipmill.metadata.schema import UID
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.engine.budget import FOLDER as BUDGET
from clipmill.pipeline.engine.budget import close_accounts
from clipmill.pipeline.engine.chain import Chain
from clipmill.pipeline.engine.chain_compute import rows_asked
from clipmill.pipeline.engine.prediction import Pace, Predicted, hours, pace, rest
from clipmill.pipeline.engine.probe_rows import Place, answered
from clipmill.pipeline.executors import Executor
from clipmill.pipeline.planning.plan import Plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.provided import Usage
from clipmill.pipeline.run_folder import lock
from clipmill.pipeline.run_folder.claim import refuse_another_seed
from clipmill.pipeline.run_folder.done import current, parents_of
from clipmill.pipeline.run_folder.rows import read_rows
from clipmill.pipeline.run_folder.state import RunState, StageState
from clipmill.pipeline.stage import RowStage

# Shapes: N rows of a shard, K of a batch, D rows that were drawn.

BATCH_ROWS = 65_536  # of uids


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What some rows of a stage took, and what those that are left will take."""

    left: int  # rows of which the run does not know yet, after the probe
    shards: int  # that hold them
    workers: int
    took: tuple[tuple[Usage, ...], ...]  # of each row that was drawn, by answer
    reasons: Mapping[str, int]  # of rows without an answer
    seconds: float

    @property
    def rows(self) -> int:
        return len(self.took)

    @property
    def asked(self) -> int:
        """Requests that were sent."""
        return sum(one.slot_s is not None for one in self._all)

    @property
    def stored(self) -> int:
        """Answers that lay there already."""
        return len(self._all) - self.asked

    @property
    def at_once(self) -> int | None:
        """Requests of a worker at once; None where none was sent."""
        return max((one.at_once or 0 for one in self._all), default=0) or None

    @cached_property
    def pace(self) -> Pace | None:
        slots = [one.slot_s for one in self._all if one.slot_s is not None]
        return pace(slots, self.at_once) if self.at_once else None

    @property
    def spent(self) -> dict[str, float]:
        """What the requests took that were sent."""
        paid = [[one for one in row if one.slot_s is not None] for row in self.took]
        return {name: float(of_D.sum()) for name, of_D in _by_row(paid).items()}

    @cached_property
    def predicted(self) -> dict[str, Predicted]:
        """What the rows that are left will take, as if no answer of theirs were stored.

        `hours` where requests were sent, `usd` where the stage knows prices.
        """
        if not self.took:
            return {}
        found = {name: rest(of_D, self.left) for name, of_D in _by_row(self.took).items()}
        if self.pace is not None and self.at_once is not None:
            asked = found["requests"]
            found["hours"] = hours(self.pace, asked, self.at_once, self.shards, self.workers)
        return found

    @property
    def _all(self) -> list[Usage]:
        return [one for row in self.took for one in row]


def _by_row(took: Sequence[Sequence[Usage]]) -> dict[str, NDArray[np.float64]]:
    """(D,) of each quantity, what each row took."""
    values: dict[str, list[float]] = {
        "requests": [len(row) for row in took],
        "prompt_tokens": [sum(one.prompt_tokens for one in row) for row in took],
        "completion_tokens": [sum(one.completion_tokens for one in row) for row in took],
    }
    if all(one.usd is not None for row in took for one in row):
        values["usd"] = [sum(one.usd or 0.0 for one in row) for row in took]
    return {name: np.array(of_D, np.float64) for name, of_D in values.items()}


def asking(plan: Plan) -> list[PlannedStage]:
    """The stages of a plan that ask a model."""
    stages = plan.stages.values()
    return [it for it in stages if isinstance(it.stage, RowStage) and it.stage.asks]


def missing(state: RunState, planned: PlannedStage) -> list[str]:
    """The stages that have to run before rows of this one can be asked for."""
    return [need for need in planned.needs if not _is_over(state.stages[need])]


def _is_over(stage: StageState) -> bool:
    """Complete, or some of its shards have failed: the run goes on without these."""
    if stage.complete or not stage.planned.is_row:
        return stage.complete
    return stage.total is not None and len(stage.shards) + len(stage.failures) == stage.total


def probe(
    plan: Plan,
    run: Storage,
    executor: Executor,
    names: Sequence[str],
    rows: int,
    workers: Mapping[str, int],
) -> Iterator[tuple[str, Probed]]:
    """Asks for so many rows of each of these stages; none of them misses a stage before it.

    One worker of the executor asks. StageError where no answer comes, as its budget is spent: what
    was answered is stored.
    """
    with lock.held(run) as owned:
        refuse_another_seed(plan, owned)
        state = RunState(plan, owned)
        try:
            for name in names:
                yield name, _probed(state, plan.stages[name], executor, rows, workers[name])
        except BaseException:
            executor.close()  # while the folder is ours
            raise


def _probed(
    state: RunState, planned: PlannedStage, executor: Executor, rows: int, workers: int
) -> Probed:
    drawn = _drawn(state, planned, rows)
    answers: Mapping[str, Any] = {"took": (), "reasons": {}, "seconds": 0.0}
    if drawn.places:
        close_accounts(state.stored[planned.name].folder.child(BUDGET))
        chain = Chain(
            seed=state.plan.seed,
            run_id="",
            run=state.run,
            stages=(planned,),
            stored=state.stored,
            models=state.digests(planned.folders),
        )
        work = partial(answered, chain, drawn.states, drawn.places)
        (answers,) = executor.launch(work, 1, planned.stage.resources)
    return Probed(
        left=drawn.rows - len(drawn.places),
        shards=drawn.shards,
        workers=max(1, min(workers, drawn.shards)),
        took=answers["took"],
        reasons=answers["reasons"],
        seconds=answers["seconds"],
    )


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Rows that a hash of the uid draws from those that a stage has not computed."""

    rows: int  # that it has not computed
    shards: int  # that hold these
    places: tuple[Place, ...]
    states: Mapping[int, Mapping[str, ShardState]]  # of the shards that hold rows drawn


def _drawn(state: RunState, planned: PlannedStage, count: int) -> _Drawn:
    """The rows with the least hashes, least first."""
    rows, shards = 0, 0
    hashes, places = np.empty(0, np.uint64), np.empty((0, 2), np.int64)
    for shard, states, asked_N in _asked(state, planned):
        rows, shards, start = rows + int(asked_N.sum()), shards + 1, 0
        for table in read_rows(state.stored, states, {}, planned.root, BATCH_ROWS):
            bits_K = coin_hash(
                table[UID.name], seed=state.plan.seed, stage=planned.name, purpose="probe"
            )
            at_K = np.flatnonzero(asked_N[start : start + len(table)])
            here = np.stack([np.full(len(at_K), shard), at_K + start], axis=1)
            hashes = np.concatenate([hashes, bits_K[at_K]])
            places = np.concatenate([places, here])
            order = np.argsort(hashes, kind="stable")[:count]
            hashes, places = hashes[order], places[order]
            start += len(table)
    found = {
        shard: state.shard_states(planned, shard) for shard in np.unique(places[:, 0]).tolist()
    }
    return _Drawn(
        rows=rows,
        shards=shards,
        places=tuple((shard, position) for shard, position in places.tolist()),
        states={shard: states for shard, states in found.items() if states},
    )


def _asked(
    state: RunState, planned: PlannedStage
) -> Iterator[tuple[int, Mapping[str, ShardState], NDArray[np.bool_]]]:
    """Shards with something to compute: of each its inputs, and (N,) which rows."""
    mine, models = state.stages[planned.name], state.digests(planned.folders)
    for shard in sorted(state.stages[planned.root].shards):
        states = state.shard_states(planned, shard)
        failure = mine.failures.get(shard)
        if shard in mine.shards or states is None or (failure and failure.crashed):
            continue
        digests = {name: it.digest for name, it in states.items()}
        parents = parents_of(planned, digests, models)
        records = current(mine.scan.records.get(shard, []), parents)
        mask = states[planned.only] if planned.only else None
        asked_N = np.ones(states[planned.root].rows, bool)
        if records or mask:
            asked_N = rows_asked(state.stored[planned.name], records, mask, ())
        if asked_N.any():
            yield shard, states, asked_N
