"""Which rows an export takes, and how many it leaves for which reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.datacard import documents
from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, KEEP, REASON, REPEATS, TEXT, Column
from clipmill.pipeline.dataset import Shards, Task
from clipmill.pipeline.stage import NonEmpty

# Shapes: N rows.

NO_TEXT = "no_text"
NEEDED = {"no_image": (IMAGE, IMAGE_BYTES), NO_TEXT: (TEXT,)}  # reason to what a row lacks
REASONS = ("not_kept", *NEEDED, "other_rows")
Times = Callable[[pa.Table], NDArray[np.integer]]  # (N,) how many samples each row makes


@dataclass(frozen=True)
class Dropped:
    """The rows that a stage gives this reason, in the place of those that are kept."""

    stage: NonEmpty  # that gave the reason: the export's `from`, or one before it
    reason: NonEmpty  # word for word, as `funnel` prints it
    decided: tuple[NonEmpty, ...] = ()  # columns beside it: the values that decided

    @property
    def column(self) -> str:
        """The stage's reasons, as an export reads them."""
        return f"{self.stage}.{REASON.name}"

    def told(self, rows: pa.Table) -> dict[str, pa.ChunkedArray]:
        """The reason of the rows, and what decided."""
        return {REASON.name: rows[self.column]} | {name: rows[name] for name in self.decided}


@dataclass(frozen=True)
class Takes:
    """Which rows leave: those that `keep` keeps and that lack nothing needed, or dropped ones."""

    needs: tuple[str, ...] = tuple(NEEDED)
    dropped: Dropped | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that an ancestor must have."""
        return (self.dropped.column, *self.dropped.decided) if self.dropped else ()

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        """None of a row that was dropped: it leaves once, whatever it repeats."""
        return () if self.dropped else (KEEP, IMAGE_BYTES, REPEATS)

    @property
    def tallied(self) -> tuple[str, ...]:
        """Enough to count: no image is read for it."""
        known = (KEEP, TEXT, IMAGE_BYTES, REPEATS)
        return (*(column.name for column in known), *self.reads)

    @property
    def about(self) -> dict[str, Any]:
        """What the data card says of rows that a stage lost."""
        lost = self.dropped
        return {"dropped": {"stage": lost.stage, "reason": lost.reason}} if lost else {}

    def __call__(self, batch: pa.Table) -> tuple[NDArray[np.bool_], dict[str, int]]:
        """(N,) the rows that leave, and how many stay, each by its first reason."""
        left_N = np.zeros(len(batch), bool)
        counts = {}
        for reason, fine in self._fine(batch).items():
            now_N = ~np.logical_and.reduce(fine, axis=0, initial=True) & ~left_N
            counts[reason] = int(np.count_nonzero(now_N))
            left_N |= now_N
        return ~left_N, counts

    def _fine(self, batch: pa.Table) -> dict[str, list[NDArray[np.bool_]]]:
        """By reason, (N,) the rows that do not have it, as each column that is there tells."""
        if self.dropped:
            is_so = pc.equal(batch[self.dropped.column].cast(pa.string()), self.dropped.reason)
            return {"other_rows": [_mask(is_so.fill_null(False))]}
        kept = [_mask(batch[KEEP.name].fill_null(False))] if KEEP.name in batch.column_names else []
        return {"not_kept": kept} | {
            reason: [
                _mask(batch[column.name].is_valid())
                for column in NEEDED[reason]
                if column.name in batch.column_names
            ]
            for reason in self.needs
        }


def _mask(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return values.to_numpy()


def once(batch: pa.Table) -> NDArray[np.integer]:
    """(N,) ones."""
    return np.ones(len(batch), np.int32)


def repeats(batch: pa.Table) -> NDArray[np.integer]:
    """(N,) `repeats`, 1 where a row has none."""
    if REPEATS.name not in batch.column_names:
        return once(batch)
    return batch[REPEATS.name].fill_null(1).to_numpy()


def tally(
    rows: Shards, takes: Takes, batch_rows: int, shard: int, task: Task, times: Times = once
) -> dict[str, int]:
    """Rows of a shard, those that leave and the samples they make, and those left by reason."""
    total = dict.fromkeys(("rows", "exported", "samples"), 0)
    for batch in rows.batches(shard, batch_rows):
        leaving_N, left = takes(batch)
        counts = {"rows": len(batch), "exported": int(np.count_nonzero(leaving_N))}
        counts["samples"] = int(times(batch)[leaving_N].sum())
        total = {n: total.get(n, 0) + number for n, number in {**counts, **left}.items()}
    return total


def summed(tallies: Sequence[dict[str, int]], takes: Takes) -> dict[str, int]:
    """The tallies of all shards as one."""
    reasons = ("other_rows",) if takes.dropped else ("not_kept", *takes.needs)
    names = ("rows", "exported", *reasons)
    return {name: sum(tally.get(name, 0) for tally in tallies) for name in names}


def put_documents(summary: dict[str, Any], task: Task) -> dict[str, int]:
    """What a person and a program read first; dataset.json last, when all it names is there."""
    for name, text in documents(summary).items():
        path = task.worker.scratch / name
        path.write_text(text, encoding="utf-8")
        task.put_file(path.name, path)
    return summary["counts"]
