"""A subset file comes back as it was written, and what is none is refused before it is used."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.schema import TEXT_LIST
from clipmill.metadata.subset_file import read_subset, write_subset

UIDS = pa.array([b"a" * 16, b"b" * 16], pa.binary(16))
WHOLE = pa.table(
    {
        "uid": UIDS,
        "shard": pa.array([0, 1], pa.int32()),
        "position": pa.array([5, 0], pa.int32()),
        "repeats": pa.array([1, 0], pa.int32()),
        "loss_weight": pa.array([None, 0.5], pa.float32()),
        "texts": pa.array([None, [{"text": "a star"}]], TEXT_LIST),
    }
)


def test_what_is_written_in_pieces_is_read_as_one(tmp_path):
    assert write_subset(tmp_path / "it.parquet", [WHOLE.slice(0, 1), WHOLE.slice(1)]) == 2
    with pq.ParquetFile(tmp_path / "it.parquet") as file:
        assert read_subset(file).equals(WHOLE)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (WHOLE.select(["repeats"]), "no column 'uid'"),
        (WHOLE.select(["uid", "shard"]), "`shard` and `position`"),
        (WHOLE.rename_columns(["uid", "shard", "position", "times", "w", "t"]), "column 'times'"),
        (pa.table({"uid": ["aa", "bb"]}), "column 'uid' holds string"),
        (pa.table({"uid": pa.array([None], pa.binary(16))}), "1 rows without `uid`"),
        (pa.table({"uid": UIDS, "repeats": pa.array([1, -1], pa.int32())}), "a `repeats` of -1"),
        (
            pa.table({"uid": UIDS, "loss_weight": pa.array([1, float("nan")], pa.float32())}),
            "a `loss_weight` of nan",
        ),
    ],
    ids=["no uid", "half a place", "unknown", "type", "null", "negative", "nan"],
)
def test_what_is_no_subset_is_not_written_and_not_read(rows, found, tmp_path):
    with pytest.raises(ValueError, match=found):
        write_subset(tmp_path / "it.parquet", [rows])
    pq.write_table(rows, tmp_path / "it.parquet")
    with pq.ParquetFile(tmp_path / "it.parquet") as file, pytest.raises(ValueError, match=found):
        read_subset(file)
