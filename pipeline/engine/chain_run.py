"""Runs a chain in a worker: finds the stages missing on each shard, computes and stores them.

Digests decide what is missing, so a repaired parent has only its own shard recomputed.
"""

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.passes import NOT_SELECTED
from clipmill.metadata.record import Record, state_of
from clipmill.metadata.scratch import scratch_folder
from clipmill.pipeline.engine import attempts
from clipmill.pipeline.engine.chain import Chain, ShardItem, next_together
from clipmill.pipeline.engine.chain_compute import Computation
from clipmill.pipeline.engine.functions import Functions
from clipmill.pipeline.engine.profiling import profiled_first
from clipmill.pipeline.errors import ShardError
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.run_folder.done import current, standing
from clipmill.pipeline.run_folder.spent import Spent


class ChainRun:
    """A worker's function of one shard item; each stage is opened once, at its first batch."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.scratch = tempfile.TemporaryDirectory(dir=scratch_folder())
        self.functions = Functions(chain, Path(self.scratch.name))
        self._done = 0  # shards
        # Where nobody closes it: the run in the driver's thread, and a worker that ends.
        self._close = weakref.finalize(self, self.functions.close)

    def close(self) -> None:
        """Ends the stages' servers and drops their models; the worker begins another step."""
        self._close()
        self.scratch.cleanup()

    def __call__(self, item: ShardItem) -> ShardItem:
        """Fills in the item with each stage's state or failure; raises StageError only."""
        with profiled_first(self.chain.run, self.chain.profile, f"{item.shard:06d}", self._done):
            todo = self._missing(self.chain.stages, item)
            while todo:
                together = next_together(todo, item)
                rest = [planned for planned in todo if planned not in together]
                self._attempt(together, item, keep_count=not rest)
                todo = self._missing(rest, item)
        self._done += 1
        return item

    def _missing(self, stages: Sequence[PlannedStage], item: ShardItem) -> list[PlannedStage]:
        """Returns the stages with something to compute, and the stages that wait for these."""
        missing: list[PlannedStage] = []
        for planned in stages:
            if item.is_blocked(planned):
                item.failed[planned.name] = None
                continue
            waits = {other.name for other in missing} & set(planned.needs)
            if waits or not self._is_settled(planned, item):
                missing.append(planned)
        return missing

    def _is_settled(self, planned: PlannedStage, item: ShardItem) -> bool:
        """Returns whether the shard is good or failed in a crash before; the item notes which."""
        name, mask = planned.name, item.mask(planned)
        parents = item.parents(planned, self.chain.models)
        stored = item.records.get(name, [])
        records = item.records[name] = current(stored, parents)
        if not records:  # outdated: its later passes go, the last one first
            for record in reversed(stored[1:]):
                self.chain.stored[name].folder.delete(record.name)
        failure = item.set_aside.get(name)
        verdict = standing(records, failure, parents, mask.digest if mask else None)
        if verdict == "failed" and failure and failure.crashed:
            item.failed[name] = failure
            return True
        counted = {reason for record in records for reason in record.counts}
        if verdict != "good" or counted & set(self.chain.retry):
            return False
        item.states[name] = state_of(records, mask)
        return True

    def _attempt(self, stages: list[PlannedStage], item: ShardItem, keep_count: bool) -> None:
        """Computes stages together, counting attempts in storage; a failure is stored.

        `keep_count`: the item's last work keeps its count, since the whole item is done again if
        the worker dies before handing it back. All other counts are removed on success.

        Stages that fail together, or have ended their worker, are redone one by one: that shows
        which is at fault, and the results of the others stay.
        """
        first, shard = stages[0], item.shard
        folder = self.chain.stored[first.name].folder
        parents = item.parents(first, self.chain.models)
        is_alone = len(stages) == 1
        name = f"{attempts.FOLDER}/{shard:06d}" + ("" if is_alone else ".chain")
        try:
            attempts.attempt(
                partial(self._compute, stages, item),
                folder,
                name,
                digest(parents),
                self.chain.run_id,
                f"stage '{' + '.join(planned.name for planned in stages)}', shard {shard}"
                + item.file,
                least=1 if is_alone else attempts.MAX_ATTEMPTS,
                begun=item.begun,
                keep_count=keep_count,
                ended=item.ended,
                killed=item.killed,
            )
        except DamagedError as damaged:  # an earlier stage's file, to be recomputed first
            item.damaged.append(damaged)
            item.failed.update({planned.name: None for planned in stages})
        except ShardError as error:
            if is_alone:
                item.failed[first.name] = attempts.fail(folder, shard, parents, error)
            else:
                self._attempt_each(stages, item)
            attempts.end(folder, name)  # a CrashedError left it
        else:
            for planned in stages:
                if failure := item.set_aside.get(planned.name):
                    self.chain.stored[planned.name].folder.delete(failure.name)

    def _attempt_each(self, stages: list[PlannedStage], item: ShardItem) -> None:
        for planned in stages:
            if item.is_blocked(planned):
                item.failed[planned.name] = None
            else:
                self._attempt([planned], item, keep_count=False)

    def _compute(self, stages: list[PlannedStage], item: ShardItem, attempt: int) -> None:
        computation = Computation(self.chain, self.functions, item, attempt)
        self.functions.answers.begin(item.shard)
        self.functions.spent.clear()
        whole = Spent()
        try:
            with whole.measured():
                if item.is_partial(stages[0]):
                    records = computation.missing_rows(stages[0])
                else:
                    records = computation.whole_shard(stages)
        finally:
            self.functions.flush()  # answers of a failed shard are stored too
        if self._done:  # the first one imports, and says little of the others
            self._share(whole, records, item)
        for planned in stages:
            name = planned.name
            if record := records.get(name):
                item.records[name] = [*item.records.get(name, []), record]
                item.new_records.append((name, record))
            item.states[name] = state_of(item.records[name], item.mask(planned))

    def _share(self, whole: Spent, records: Mapping[str, Record], item: ShardItem) -> None:
        """Adds each stage's work: its functions', and an equal share of reading and storing."""
        inside = self.functions.spent
        for spent in inside.values():
            whole.add(spent, -1)
        for name, record in records.items():
            spent = item.spent.setdefault(name, Spent())
            spent.add(whole, 1 / len(records))
            spent.add(inside[name])
            spent.rows += record.computed - record.counts.get(NOT_SELECTED, 0)
