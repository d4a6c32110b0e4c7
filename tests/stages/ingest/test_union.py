"""Union: rows of several roots, with what each lacks."""

import pyarrow as pa

from clipmill.stages.ingest.union import Union


class Tables(list):
    """Shards of several roots in memory; the first is of `a`, the others are of `b`."""

    def source(self, index: int) -> str:
        return "ab"[index > 0]

    def digest(self, index: int) -> str:
        return f"digest {index}"

    def batches(self, index: int, batch_rows: int = 1024):
        for start in range(0, max(1, len(self[index])), batch_rows):
            yield self[index][start : start + batch_rows]


def root(source: str, rows: int, **more) -> pa.Table:
    return pa.table(
        {
            "uid": pa.array([bytes([i]) * 16 for i in range(rows)], pa.binary(16)),
            "url": pa.array([f"{source}/{i}" for i in range(rows)], pa.string()),
            "text": pa.array(["t"] * rows, pa.string()),
            **more,
        }
    )


def test_rows_of_all_roots_come_in_order_with_nulls_for_what_one_lacks(run):
    wide = root("a", 2, original_width=pa.array([1, 2], pa.int32()))
    ctx = run(Union(), Tables([wide, root("b", 0), root("b", 1)]))
    assert list(map(len, ctx.shards)) == [2, 0, 1]
    assert [source["digest"] for source in ctx.sources] == ["digest 0", "digest 1", "digest 2"]
    rows = pa.concat_tables(ctx.shards)
    assert rows["url"].to_pylist() == ["a/0", "a/1", "b/0"]
    assert rows["source"].to_pylist() == ["a", "a", "b"]
    assert rows["original_width"].to_pylist() == [1, 2, None]
    assert rows["reason"].null_count == 3


def test_a_uid_that_two_roots_share_stays_in_both_places(run):
    rows = pa.concat_tables(run(Union(), Tables([root("a", 1), root("b", 1)])).shards)
    assert rows["uid"].to_pylist() == [b"\0" * 16] * 2


def test_images_go_along_when_asked(run):
    rows = Tables([root("a", 1, image=pa.array([b"x"], pa.binary())), root("b", 1)])
    assert "image" not in run(Union(), rows).shards[0].column_names
    found = pa.concat_tables(run(Union(images=True), rows).shards)
    assert found["image"].to_pylist() == [b"x", None]
