"""Centroids and targets as files, for those who choose by them."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.stages.ops.vectors.centroids import to_table
from tests.stages.select.targets import write_targets


@pytest.fixture
def files(tmp_path):
    """Writes centroids and targets, and names them as settings do."""

    def write(centroid_KD, model: str | None = None, **tasks) -> dict[str, str]:
        none = np.zeros(len(centroid_KD))
        held = to_table(np.asarray(centroid_KD), none, none, metric="euclidean", model=model)
        pq.write_table(held, tmp_path / "centroids.parquet")
        (tmp_path / "targets").mkdir(exist_ok=True)
        for name, vectors in tasks.items():
            write_targets(tmp_path / "targets" / f"{name}.parquet", vectors)
        places = ("targets", tmp_path / "targets"), ("centroids", tmp_path / "centroids.parquet")
        return {name: str(place) for name, place in places}

    return write
