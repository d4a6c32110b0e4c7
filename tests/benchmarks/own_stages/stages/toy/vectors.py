"""A pool of vectors in clusters out of nothing, a quarter of them near copies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CENTROID_COSINE, CLUSTER_ID, IMAGE_EMBEDDING, UID
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage

from .codes import mixed, uids

# Shapes: N rows of a shard, D width of a vector, C clusters.

SPREAD, COPY_SPREAD = 0.8, 0.15  # of a cluster about its centre, of a copy about its original


@dataclass(frozen=True, kw_only=True)
class Vectors(DatasetStage):
    """A vector, its cluster and the cosine to the cluster's centre; sizes vary by a factor of 2.5.

    Every fourth row of a shard copies one of its cluster there.
    """

    shards: int
    shard_rows: int
    width: int
    cluster_rows: int  # on average

    version = 1
    determinism = "exact"
    takes = ()
    writes = (IMAGE_EMBEDDING, CLUSTER_ID, CENTROID_COSINE)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        sources = [{"shard": shard, "digest": str(shard)} for shard in range(self.shards)]
        ctx.create_shards(partial(made, self), sources)


def made(stage: Vectors, source: Mapping[str, Any], task: Task) -> Iterator[pa.Table]:
    """The shard's rows."""
    rows = stage.shard_rows
    number_N = np.arange(rows, dtype=np.uint64) + np.uint64(source["shard"] * rows)
    clusters = stage.shards * rows // stage.cluster_rows
    cluster_N = clusters_of(number_N, clusters)
    rng = np.random.default_rng(source["shard"])
    vector_ND = rng.standard_normal((rows, stage.width), dtype=np.float32)
    centre_CD = np.random.default_rng(2**32).standard_normal((clusters, stage.width), np.float32)
    centre_ND = centre_CD[cluster_N]
    order_N = np.argsort(cluster_N, kind="stable")
    copy = order_N[1::4]
    original = np.where(cluster_N[order_N[::4]] == cluster_N[copy], order_N[::4], copy)
    noise_ND = COPY_SPREAD * vector_ND[copy]
    vector_ND = centre_ND + SPREAD * vector_ND
    vector_ND[copy] = vector_ND[original] + noise_ND
    lengths_N = np.sqrt(np.vecdot(vector_ND, vector_ND) * np.vecdot(centre_ND, centre_ND))
    offsets = pa.array(np.arange(0, rows * stage.width + 1, stage.width, dtype=np.int32))
    columns = {
        UID.name: uids(number_N),
        IMAGE_EMBEDDING.name: pa.ListArray.from_arrays(offsets, pa.array(vector_ND.ravel())),
        CLUSTER_ID.name: pa.array(cluster_N.astype(np.int32)),
        CENTROID_COSINE.name: pa.array(np.vecdot(vector_ND, centre_ND) / lengths_N),
        "reason": pa.nulls(rows, pa.string()).dictionary_encode(),
    }
    yield pa.table(columns)


def clusters_of(number_N: NDArray[np.uint64], clusters: int) -> NDArray[np.int64]:
    """(N,) the cluster of each row, by its number."""
    uniform_N = (mixed(number_N ^ np.uint64(2**62)) >> np.uint64(11)) * 2.0**-53
    # The density falls from 10/7 to 4/7 of the mean.
    return ((10 - np.sqrt(100 - 84 * uniform_N)) / 6 * clusters).astype(np.int64)
