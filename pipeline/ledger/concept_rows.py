"""How many kept rows name each concept, on both sides of a diff."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.schema import CONCEPT_IDS
from clipmill.pipeline.ledger.sides import Side
from clipmill.pipeline.ledger.stored import artifacts, binding, stored

# Shapes: N rows of a shard, E entries of a list of concepts.

LARGEST = 12  # concepts that changed most


@dataclass(frozen=True, kw_only=True)
class ConceptRows:
    """One entry of a list of concepts, and the kept rows that name it."""

    entry: str
    before: int
    after: int


class ConceptTally:
    """Counts where both sides store concepts of lists whose entries a balance has named."""

    def __init__(self, before: Side, after: Side) -> None:
        self.sides = (before, after)
        self.bound = [binding(side.state, side.stage, CONCEPT_IDS.name) for side in self.sides]
        self.entries = [self._entries(which) for which in (0, 1)]
        self.counts = [np.zeros(len(entries), np.int64) for entries in self.entries]
        self.there = all(map(len, self.entries))

    def _entries(self, which: int) -> list[str]:
        """The entries by their number, from the first balance of these concepts; else none."""
        state = self.sides[which].state
        for name, stage in state.stages.items():
            files = artifacts(stage, "concepts").values()
            bindings = state.plan.stages[name].bindings
            if files and bindings and bindings[0].get(CONCEPT_IDS.name) == self.bound[which]:
                (file, *_) = files
                return pl.read_parquet(Outputs(stage.folder).read(file))["entry"].to_list()
        return []

    def see(self, which: int, index: int, fate_N: NDArray[np.int32]) -> None:
        """Takes in one shard of one side."""
        bound = self.bound[which]
        if not self.there or bound is None:
            return
        side = self.sides[which]
        table = stored(side.state, side.root, {"ids": bound}).table(index)
        ids = table["ids"].filter(pa.array(fate_N == 0)).combine_chunks()
        concept_M = pc.list_flatten(ids).to_numpy()
        self.counts[which] += np.bincount(concept_M, minlength=len(self.counts[which]))

    def told(self) -> tuple[ConceptRows, ...]:
        """The entries whose counts differ most."""
        before, after = (
            dict(zip(entries, counts.tolist(), strict=True))
            for entries, counts in zip(self.entries, self.counts, strict=True)
        )
        by: dict[str, tuple[int, int]] = {
            entry: (before.get(entry, 0), after.get(entry, 0)) for entry in {**before, **after}
        }
        moved = [entry for entry, (was, now) in by.items() if was != now]
        moved.sort(key=lambda entry: (-abs(by[entry][1] - by[entry][0]), entry))
        return tuple(
            ConceptRows(entry=entry, before=by[entry][0], after=by[entry][1])
            for entry in moved[:LARGEST]
        )
