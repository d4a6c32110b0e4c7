"""Selects the rows of an export, and counts the others by reason."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, KEEP, REASON, REPEATS, TEXT, Column
from clipmill.pipeline.dataset import Shards, Task
from clipmill.pipeline.stage import NonEmpty

# Shapes: N rows.

NO_TEXT = "no_text"
NEEDED = {"no_image": (IMAGE, IMAGE_BYTES), NO_TEXT: (TEXT,)}  # reason to the columns required
REASONS = ("not_kept", *NEEDED, "other_rows")
Times = Callable[[pa.Table], NDArray[np.integer]]  # returns (N,) the number of samples of each row


@dataclass(frozen=True)
class Dropped:
    """A choice of the rows that a stage dropped for a reason, instead of the kept ones."""

    stage: NonEmpty  # the stage that gave the reason: the export's `from`, or one before it
    reason: NonEmpty  # exactly as `funnel` prints it
    decided: tuple[NonEmpty, ...] = ()  # columns to export besides: the values that decided

    @property
    def column(self) -> str:
        """The column of the stage's reasons, as an export reads it."""
        return f"{self.stage}.{REASON.name}"

    def columns_of(self, rows: pa.Table) -> dict[str, pa.ChunkedArray]:
        """Returns the columns that tell why rows were dropped: the reason and what decided."""
        return {REASON.name: rows[self.column]} | {name: rows[name] for name in self.decided}


@dataclass(frozen=True)
class Takes:
    """A choice of rows: those that are kept and have all columns needed, or dropped ones."""

    needs: tuple[str, ...] = tuple(NEEDED)
    dropped: Dropped | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that an ancestor must have."""
        return (self.dropped.column, *self.dropped.decided) if self.dropped else ()

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        """Columns read if present; none for dropped rows, each of which is exported once."""
        return () if self.dropped else (KEEP, IMAGE_BYTES, REPEATS)

    @property
    def tallied(self) -> tuple[str, ...]:
        """Columns to count by; no image is read."""
        known = (KEEP, TEXT, IMAGE_BYTES, REPEATS)
        return (*(column.name for column in known), *self.reads)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons for which a row may be left out, in order."""
        return ("other_rows",) if self.dropped else ("not_kept", *self.needs)

    @property
    def about(self) -> dict[str, Any]:
        """Entry of the data card that names the dropped rows."""
        dropped = self.dropped
        return {"dropped": {"stage": dropped.stage, "reason": dropped.reason}} if dropped else {}

    def __call__(self, batch: pa.Table) -> tuple[NDArray[np.bool_], dict[str, int]]:
        """Returns (N,) whether each row is exported, and the count of others by first reason."""
        return by_first_reason(self._fine(batch), len(batch))

    def shown(self, rows: pa.Table) -> pa.Table:
        """Returns the rows as they are exported; a subclass blurs their pictures."""
        return rows

    def _fine(self, batch: pa.Table) -> dict[str, NDArray[np.bool_]]:
        """Returns for each reason (N,) whether a row escapes it; one value if all do."""
        if self.dropped:
            is_so = pc.equal(batch[self.dropped.column].cast(pa.string()), self.dropped.reason)
            return {"other_rows": is_so.fill_null(False).to_numpy()}
        fine = {"not_kept": kept(batch)}
        for reason in self.needs:
            present = [c.name for c in NEEDED[reason] if c.name in batch.column_names]
            has = [batch[name].is_valid().to_numpy() for name in present]
            fine[reason] = np.logical_and.reduce(has, axis=0, initial=True)
        return fine


def by_first_reason(
    fine: Mapping[str, NDArray[np.bool_]], rows: int
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Returns (N,) whether a row escapes all reasons, and the count of others by their first."""
    taken_N, counts = np.ones(rows, bool), {}
    for reason, fine_N in fine.items():
        counts[reason] = int(np.count_nonzero(taken_N & ~fine_N))
        taken_N &= fine_N
    return taken_N, counts


def kept(batch: pa.Table) -> NDArray[np.bool_]:
    """Returns (N,) whether a select stage keeps the row; true if there is none."""
    if KEEP.name not in batch.column_names:
        return np.ones(len(batch), bool)
    return batch[KEEP.name].fill_null(False).to_numpy()


def once(batch: pa.Table) -> NDArray[np.integer]:
    """Returns (N,) ones: a sample a row."""
    return np.ones(len(batch), np.int32)


def repeats(batch: pa.Table) -> NDArray[np.integer]:
    """Returns (N,) `repeats`, 1 if missing."""
    if REPEATS.name not in batch.column_names:
        return once(batch)
    return batch[REPEATS.name].fill_null(1).to_numpy()


def tally(
    rows: Shards, takes: Takes, batch_rows: int, shard: int, task: Task, times: Times = once
) -> dict[str, int]:
    """Counts the rows of a shard, those exported, their samples, and those left out by reason."""
    total = Counter(rows=0, exported=0, samples=0)
    for batch in rows.batches(shard, batch_rows):
        exported_N, left_out = takes(batch)
        samples = int(times(batch)[exported_N].sum())
        total.update(rows=len(batch), exported=int(exported_N.sum()), samples=samples)
        total.update(left_out)
    return dict(total)


def summed(tallies: Sequence[dict[str, int]], takes: Takes) -> dict[str, int]:
    """Sums rows, exported rows and reasons over the tallies of all shards."""
    names = ("rows", "exported", *takes.reasons)
    return {name: sum(tally.get(name, 0) for tally in tallies) for name in names}
