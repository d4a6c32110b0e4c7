"""Joins a select's verdicts to the rows of an export by shard and position, as uids repeat."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import places_name, read_places, unplaced
from clipmill.metadata.schema import KEEP, REPEATS
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.run_folder.rows import PoolShards


@dataclass(frozen=True)
class SelectMask:
    """A select stage's verdicts for the rows of an export. Implements `Mask`."""

    verdicts: PoolShards  # `keep`, and `repeats` if the select or an ancestor writes it
    export: Storage

    def times(self, file: str) -> NDArray[np.int32]:
        outputs = Outputs(self.export)
        try:
            place_N2 = read_places(outputs, places_name(file))
        except FileNotFoundError:
            raise StageError(*unplaced(outputs, file)) from None
        times_N = np.zeros(len(place_N2), np.int32)
        for shard in np.unique(place_N2[:, 0]):
            here = place_N2[:, 0] == shard
            times_N[here] = self.times_in_pool(int(shard))[place_N2[here, 1]]
        return times_N

    def by_reference(self, folder: Storage, below: str) -> "SelectMask":
        """Returns a copy whose shard states workers read from an object in `folder`/`below`."""
        return replace(self, verdicts=self.verdicts.by_reference(folder, below))

    def times_in_pool(self, shard: int) -> NDArray[np.int32]:
        """Returns (N,) repeats of each row of a pool's shard; 0 for rows not kept."""
        rows = self.verdicts.table(shard)
        keep = rows[KEEP.name].fill_null(False)
        repeated = REPEATS.name in rows.column_names
        times = rows[REPEATS.name].fill_null(1) if repeated else 1
        times_N: NDArray[np.int32] = pc.if_else(keep, times, 0).to_numpy().astype(np.int32)
        return times_N
