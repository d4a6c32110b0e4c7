"""Rows of an arm: lists, chance, mixtures. What stages keep: tests/pipeline/bench/test_prepare."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import TEXT_LIST
from clipmill.metadata.storage import Storage
from clipmill.metadata.subset_file import check_subset
from clipmill.metadata.uid import halves
from clipmill.pipeline.bench.arms import ArmWriter
from clipmill.pipeline.bench.listed import read_list
from clipmill.pipeline.bench.rows import Chance, Every, Mixed, chances, listed, once


def shard(number: int = 0, rows: int = 1000) -> pa.Table:
    """Every second row of a shard of the pool."""
    uids = [hashlib.sha256(f"{number} {row}".encode()).digest()[:16] for row in range(rows)]
    places = {"shard": np.full(rows, number, np.int32), "position": np.arange(rows, dtype=np.int32)}
    table = pa.table({"uid": pa.array(uids, pa.binary(16)), **places})
    return table.filter(pa.array(np.arange(rows) % 2 == 0))


class Some:
    """Rows whose place is a multiple of a number, so often, with a weight and perhaps a text."""

    def __init__(self, multiple: int, repeats: int = 1, weight: float = 1.0, text: str = ""):
        self.multiple, self.repeats, self.weight, self.text = multiple, repeats, weight, text
        self.has_texts = bool(text)

    def of(self, table: pa.Table, number: int) -> pa.Table:
        rows = once(table.filter(pa.array(table["position"].to_numpy() % self.multiple == 0)))
        rows = rows.set_column(3, "repeats", pa.array([self.repeats] * len(rows), pa.int32()))
        rows = rows.set_column(4, "loss_weight", pa.array([self.weight] * len(rows), pa.float32()))
        texts = pa.array([[{"text": self.text}]] * len(rows), TEXT_LIST)
        return rows.append_column("texts", texts) if self.text else rows


def test_a_list_names_rows_as_often_as_it_does_in_any_order():
    table = shard()
    uid_N2 = halves(table["uid"])
    near = np.array([[uid_N2[3, 0], 5]], np.uint64)  # shares its first half with row 3
    rows = listed(np.concatenate([uid_N2[[9, 3, 9]], near, uid_N2[[9]]])).of(table, 0)
    assert rows["position"].to_pylist() == [6, 18]
    assert rows["repeats"].to_pylist() == [1, 3]
    assert len(listed(np.empty((0, 2), np.uint64)).of(table, 0)) == 0


def test_a_list_of_text_may_begin_with_the_mark_of_an_editor(tmp_path):
    for mark in ("", "\ufeff"):
        (tmp_path / "list.txt").write_text(f"{mark}{'0' * 31}1\r\n{'0' * 32}\n")
        assert read_list(str(tmp_path / "list.txt"), "a")[0].tolist() == [[0, 1], [0, 0]]


def test_chance_takes_the_least_coins_so_that_a_smaller_draw_lies_in_a_larger():
    table = shard()
    coins = np.sort(chances(table, 3))
    some, more = (Chance(int(coins[size]), 3, Every()).of(table, 0) for size in (100, 200))
    assert (len(some), len(more)) == (100, 200)
    assert set(some["position"].to_pylist()) < set(more["position"].to_pylist())
    other = Chance(int(coins[100]), 4, Every()).of(table, 0)
    assert some["position"].to_pylist() != other["position"].to_pylist()


def test_a_mixture_has_its_shares_and_loses_no_row():
    a, b = Some(20), Some(2)
    samples = {"a": len(a.of(shard(), 0)), "b": len(b.of(shard(), 0))}
    mixed = Mixed("both", {"a": a, "b": b}, {"a": 0.7, "b": 0.3}, samples, seed=0)
    rows = mixed.of(shard(), 0)
    assert len(rows) == samples["b"]  # every row of either
    repeats = dict(zip(rows["position"].to_pylist(), rows["repeats"].to_pylist(), strict=True))
    total = sum(repeats.values())
    assert total == pytest.approx(samples["b"] / 0.3, rel=0.02)
    from_b = samples["b"]  # each is expected once
    assert (total - from_b) / total == pytest.approx(0.7, abs=0.02)
    assert {times for place, times in repeats.items() if place % 20} == {1}
    assert {times for place, times in repeats.items() if not place % 20} <= {24, 25}


def test_a_row_of_two_parts_has_the_first_texts_and_the_mean_weight():
    a, b = Some(4, weight=3.0), Some(2, repeats=2, text="of b")
    samples = {"a": 250, "b": 1000}
    rows = Mixed("both", {"a": a, "b": b}, {"a": 0.5, "b": 0.5}, samples, 0).of(shard(), 0)
    check_subset(rows.schema)
    by_place = {row["position"]: row for row in rows.to_pylist()}
    assert by_place[2]["repeats"] == 2
    assert by_place[2]["loss_weight"] == 1.0
    assert by_place[4]["repeats"] == 6  # 4 by a, 2 by b
    assert by_place[4]["loss_weight"] == pytest.approx((4 * 3 + 2 * 1) / 6)
    assert {row["texts"][0]["text"] for row in by_place.values()} == {"of b"}
    bare = Mixed(
        "both", {"a": Some(4), "r": Every()}, {"a": 0.5, "r": 0.5}, samples | {"r": 500}, 0
    )
    assert not bare.has_texts
    assert "texts" not in bare.of(shard(), 0).column_names
    some = Mixed(
        "c", {"t": Some(4, text="t"), "r": Every()}, {"t": 0.5, "r": 0.5}, {"t": 250, "r": 500}, 0
    )
    assert [
        row["texts"] and row["texts"][0]["text"] for row in some.of(shard(), 0).to_pylist()[:3]
    ] == ["t", None, "t"]


def test_a_uid_of_two_rows_hides_no_listed_uid_that_the_pool_has_not(tmp_path):
    table = shard()
    twice = pa.concat_tables([table, table])
    raw = SimpleNamespace(
        rows=len(twice),
        held_out=None,
        tables=lambda: [(0, twice)],
        pool=SimpleNamespace(table=lambda number: twice),
    )
    lines = [uid.hex() for uid in [*table["uid"].to_pylist()[:3], b"\0" * 16, b"\1" * 16]]
    (tmp_path / "few.txt").write_text("\n".join(lines))
    few = SimpleNamespace(kind="list", path=str(tmp_path / "few.txt"))
    writer = ArmWriter(raw, "raw", SimpleNamespace(bindings=[{}]), Storage(str(tmp_path)), {})
    writer.write(SimpleNamespace(rows={"few": few}), {})
    arm = writer.written["few"]
    assert (arm.rows, arm.lacking, arm.unknown) == (6, 0, 2)
