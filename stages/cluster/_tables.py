"""What k-means leaves in out/: its centroids, its rounds, and their sums."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.dataset import Context, Inputs, State, Task
from clipmill.stages.cluster._rounds import Space, inertia
from clipmill.stages.cluster._tree import PARENT, Tree
from clipmill.stages.ops.centroids import FILE, Centroids, to_table
from clipmill.stages.ops.outputs import put_table, put_text

if TYPE_CHECKING:
    from clipmill.stages.cluster.kmeans import KMeans

# Shapes: K centres, R rounds.

ROUNDS, SUMMARY = "rounds.parquet", "clusters.json"


def put_results(
    ctx: Context,
    stage: "KMeans",
    inputs: Inputs,
    tree: Tree,
    sums: State,
    space: Space,
    by_round: dict[str, NDArray],
) -> None:
    """Stores what was found, as files in out/."""
    far_K = inertia(sums, space)
    held = Centroids(
        vector=tree.centre,
        rows=sums["count_K"].astype(np.int64),
        inertia=far_K,
        metric=stage.metric,
        column=stage.column,
        model=inputs.model_of.get(stage.column),
    )
    table = to_table(held)
    if tree.parent is not None:
        table = table.append_column(PARENT, pa.array(tree.parent_of, pa.int32()))
    files: dict[str, Any] = {FILE: table}
    if by_round:
        files[ROUNDS] = rounds(by_round)
    files[SUMMARY] = {
        "asked": stage.clusters or len(tree.centre),
        "clusters": len(tree.centre),
        "without_rows": int((sums["count_K"] == 0).sum()),
        "parents": None if tree.parent is None else len(tree.parent),
        "rows": int(sums["count_K"].sum()),
        "metric": stage.metric,
        "inertia": float(far_K.sum()),
    }
    ctx.map(partial(put_file, files), list(files))


def rounds(by_round: dict[str, NDArray]) -> pa.Table:
    """A row a round, from 0; of two levels with the level, from 0."""
    round_R2 = np.concatenate([*by_round.values()])
    table = pa.table(
        {
            "round": pa.array(
                np.concatenate([np.arange(len(r)) for r in by_round.values()]), pa.int32()
            ),
            "rows": pa.array(round_R2[:, 0].astype(np.int64)),
            "inertia": pa.array(round_R2[:, 1]),
        }
    )
    if len(by_round) > 1:
        level_R = np.repeat(np.arange(len(by_round)), [len(r) for r in by_round.values()])
        table = table.append_column("level", pa.array(level_R, pa.int32()))
    return table


def put_file(files: dict[str, Any], name: str, task: Task) -> dict[str, int]:
    """Stores one of them as `out/<name>`."""
    held = files[name]
    if isinstance(held, pa.Table):
        put_table(name, held, task)
    else:
        put_text(name, json.dumps(held) + "\n", task)
    return {"rows": len(held)}
