"""Centroids as a file: read as they were written, and what is wrong with one said in a sentence."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.vectors.centroids import read, to_table

THREE = np.arange(6, dtype=np.float32).reshape(3, 2)


def written(path, table: pa.Table) -> str:
    pq.write_table(table, path)
    return str(path)


def test_they_are_read_as_they_were_written(tmp_path):
    model = "open_clip:ViT-L-14/openai"
    ours = to_table(THREE, np.array([5, 0, 2]), np.ones(3), metric="euclidean", model=model)
    held = read(None, written(tmp_path / "c.parquet", ours), "stage 'x'")
    assert np.array_equal(held.vector, THREE)
    assert (held.metric, held.model, len(held)) == ("euclidean", model, 3)


def test_a_bare_column_of_vectors_will_do(tmp_path):
    path = written(tmp_path / "c.parquet", pa.table({"centroid": [[1.0, 0.0], [0.0, 1.0]]}))
    held = read(None, path, "stage 'x'")
    assert held.vector.tolist() == [[1, 0], [0, 1]]
    assert (held.metric, held.model) == ("cosine", None)


def test_clusters_stand_by_their_number(tmp_path):
    table = pa.table(
        {"cluster_id": pa.array([1, 0], pa.int32()), "centroid": [[1.0, 0.0], [0.0, 1.0]]}
    )
    held = read(None, written(tmp_path / "c.parquet", table), "stage 'x'")
    assert held.vector.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (pa.table({"vector": [[1.0]]}), "no column `centroid`"),
        (pa.table({"centroid": pa.array([], pa.list_(pa.float32()))}), "no row"),
        (pa.table({"centroid": ["a"]}), "a column `centroid` of string"),
        (pa.table({"centroid": [[1.0], [1.0, 2.0]]}), "vectors of 2 widths"),
        (pa.table({"centroid": [[1.0], None]}), "centroid 1 is null, or not finite"),
        (pa.table({"centroid": [[np.inf], [1.0]]}), "centroid 0 is null, or not finite"),
        (pa.table({"cluster_id": [1, 2], "centroid": [[1.0], [2.0]]}), "that are not 0, 1, 2"),
        (
            pa.table({"centroid": [[1.0]]}).replace_schema_metadata({"clipmill.metric": "l1"}),
            "clipmill.metric is 'l1'",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path, table, found):
    with pytest.raises(StageError, match=found) as raised:
        read(None, written(tmp_path / "c.parquet", table), "stage 'x'")
    assert "stage 'x', key `centroids`" in str(raised.value)


def test_no_file_and_no_parquet(tmp_path):
    with pytest.raises(StageError, match="no such file"):
        read(None, str(tmp_path / "none.parquet"), "stage 'x'")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StageError, match="no Parquet that can be read"):
        read(None, str(tmp_path / "text"), "stage 'x'")
