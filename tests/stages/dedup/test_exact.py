"""ExactDuplicate: one row of each set of equal bytes stays, and every other one names it."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError
from clipmill.stages.dedup import exact
from clipmill.stages.dedup.exact import ExactDuplicate, name_keeper, with_key
from clipmill.stages.ops.tables.keeper import Keep
from tests.stages.task_folders import encoded, picture

ROWS = [  # uid, sha256, expected keeper
    ("c", "one", "a"),
    ("a", "one", None),
    ("d", None, None),
    ("b", "two", None),
    ("e", None, None),
    ("f", "one", "a"),
    ("h", "", None),
    ("g", "", None),
]


def uid(letter: str | None) -> bytes | None:
    return letter and letter.encode() * 16


def table(rows: list) -> pa.Table:
    return pa.table(
        {
            "uid": pa.array([uid(row[0]) for row in rows], pa.binary(16)),
            "sha256": pa.array([row[1] for row in rows], pa.string()),
        }
    )


def test_the_least_uid_stays_and_the_others_name_it(memory_shards, memory_context):
    ctx = memory_context()
    ExactDuplicate().run(Inputs(rows=memory_shards(table(ROWS[:2]), table(ROWS[2:]))), ctx)
    out = pa.concat_tables(ctx.stored)
    assert out["duplicate_of"].to_pylist() == [uid(keeper) for _, _, keeper in ROWS]
    no_digest = [not sha256 for _, sha256, _ in ROWS]
    assert out["reason"].to_pylist() == ["no_sha256" if n else None for n in no_digest]


def test_only_rows_that_another_equals_are_put_in_order(memory_shards, monkeypatch):
    ordered, best_first = [], exact.best_first

    def noting(rows):
        ordered.extend(rows["uid"].to_pylist())
        return best_first(rows)

    monkeypatch.setattr(exact, "best_first", noting)
    name_keeper(with_key(ExactDuplicate(), memory_shards(table(ROWS))[0]))
    assert ordered == [uid("c"), uid("a"), uid("f")]


def test_of_a_repeated_uid_with_equal_bytes_the_first_in_the_pool_stays(memory_shards):
    shards = memory_shards(*[table([("a", "one"), ("a", "one")])] * 2)
    rows = with_key(ExactDuplicate(), pa.concat_tables(shards))
    keepers = name_keeper(rows.take([2, 3, 1, 0]))["duplicate_of"].to_pylist()
    assert keepers == [uid("a")] * 3 + [None]


def test_with_a_column_the_best_row_stays_and_rows_without_a_value_come_last(
    memory_shards, memory_context
):
    rows = table([(letter, "one") for letter in "abcd"])
    rows = rows.append_column("score", pa.array([None, 0.5, 0.9, 0.9], pa.float32()))
    for order, keeper in (("desc", "c"), ("asc", "b")):
        stage, ctx = ExactDuplicate(keep=Keep(column="score", order=order)), memory_context()
        assert [getattr(column, "name", column) for column in stage.reads] == ["sha256", "score"]
        stage.run(Inputs(rows=memory_shards(rows)), ctx)
        expected = [None if letter == keeper else uid(keeper) for letter in "abcd"]
        assert ctx.stored[0]["duplicate_of"].to_pylist() == expected


def test_a_repeated_uid_with_other_bytes_is_no_duplicate(memory_shards):
    (rows,) = memory_shards(table([("a", "one"), ("a", "two")]))
    assert name_keeper(with_key(ExactDuplicate(), rows))["duplicate_of"].null_count == 2


def test_uids_are_ordered_by_bytes_past_0x7f(memory_shards):
    (rows,) = memory_shards(table([("a", "one"), ("a", "one")]))
    high = pa.array([b"\xff" * 16, b"\x01" * 16], pa.binary(16))
    rows = rows.set_column(0, "uid", high)
    assert name_keeper(with_key(ExactDuplicate(), rows))["duplicate_of"].to_pylist() == [
        b"\x01" * 16,
        None,
    ]


def test_keepers_equal_a_plain_dictionary(memory_shards, memory_context):
    rng = np.random.default_rng(0)
    rows = [(chr(97 + u), f"{s}") for u, s in rng.integers(0, (26, 12), (300, 2))]
    ctx = memory_context()
    parts = [table(rows[start : start + 70]) for start in range(0, 300, 70)]
    ExactDuplicate().run(Inputs(rows=memory_shards(*parts)), ctx)
    first: dict = {}
    for i, (letter, digest) in enumerate(rows):
        first[digest] = min(first.get(digest, (letter, i)), (letter, i))
    expected = [
        None if first[digest] == (letter, i) else uid(first[digest][0])
        for i, (letter, digest) in enumerate(rows)
    ]
    assert pa.concat_tables(ctx.stored)["duplicate_of"].to_pylist() == expected


def keepers(ctx, rows: pa.Table, shards, **settings) -> tuple[list, list]:
    """The letter that each row names, and its reason."""
    stage = ExactDuplicate(**settings)
    stage.run(Inputs(rows=shards(rows[:2], rows[2:])), ctx)
    out = pa.concat_tables(t.unify_dictionaries() for t in ctx.stored)
    named = [keeper and chr(keeper[0]) for keeper in out["duplicate_of"].to_pylist()]
    assert {*out["reason"].to_pylist()} <= {None, *stage.reasons}
    return named, out["reason"].to_pylist()


def lettered(**columns: pa.Array) -> pa.Table:
    rows = len(next(iter(columns.values())))
    uids = pa.array([uid(chr(97 + number)) for number in range(rows)], pa.binary(16))
    return pa.table({"uid": uids, **columns})


def test_equal_pixels_are_found_in_other_files(memory_shards, memory_context):
    png, bmp, other = picture(0), encoded(0, ".bmp"), picture(1)
    turned = encoded(0, ".png", transposed=True)  # as many bytes of pixels, another shape
    images = pa.array([png, None, bmp, b"<html>", other, turned, png[:60], png], pa.binary())
    named, reasons = keepers(memory_context(), lettered(image=images), memory_shards, by="pixels")
    assert named == [None, None, "a", None, None, None, None, "a"]
    bad = {1: "no_image", 3: "undecodable", 6: "undecodable"}
    assert reasons == [bad.get(number) for number in range(8)]


def test_links_are_compared_in_normal_form(memory_shards, memory_context):
    urls = ["HTTP://A.org:80/%7ex#top", None, "http://a.org/~x", "http://a.org/~X", " "]
    named, reasons = keepers(
        memory_context(), lettered(url=pa.array(urls)), memory_shards, by="url"
    )
    assert named == [None, None, "a", None, None]
    assert reasons == [None, "no_url", None, None, "empty_url"]


def test_captions_are_compared_in_normal_form(memory_shards, memory_context):
    texts = ["A \uff23at", None, " a\tcat\n", "a cat.", "\u3000"]
    rows = lettered(text=pa.array(texts))
    named, reasons = keepers(memory_context(), rows, memory_shards, by="caption")
    assert named == [None, None, "a", None, None]
    assert reasons == [None, "no_text", None, None, "empty_text"]


def test_any_columns_can_be_compared(memory_shards, memory_context):
    rows = lettered(
        url=pa.array(["x", "x", "x", "y", "x"]),
        width=pa.array([1, 2, 1, 1, None], pa.int32()),
        vector=pa.array([[0.5], [0.5], [0.5], [0.5], None], pa.list_(pa.float32())),
    )
    for columns, want in {
        ("url", "width"): [None, None, "a", None, None],
        ("url",): [None, "a", "a", None, "a"],
        ("vector", "width", "url"): [None, None, "a", None, None],
    }.items():
        named, reasons = keepers(memory_context(), rows, memory_shards, columns=columns)
        assert named == want
        assert reasons == [None] * 4 + ["no_value" if len(columns) > 1 else None]


def test_nan_is_no_value_but_in_a_list(memory_shards, memory_context):
    nan = float("nan")
    vectors = [[nan, None], [nan, None], [0.0], [-0.0]]
    rows = lettered(score=pa.array([nan, nan, 0.0, -0.0]), vector=pa.array(vectors))
    wanted = {"score": ([None] * 3, "no_value"), "vector": ([None, "a", None], None)}
    for column, (want, first) in wanted.items():
        named, reasons = keepers(memory_context(), rows, memory_shards, columns=(column,))
        assert named == [*want, "c"]
        assert reasons == [first, first, None, None]


def test_values_that_only_run_together_are_not_equal(memory_shards, memory_context):
    rows = lettered(a=pa.array(["x", "xy", "x"]), b=pa.array(["yz", "z", "yz"]))
    named, _ = keepers(memory_context(), rows, memory_shards, columns=("a", "b"))
    assert named == [None, None, "a"]


def test_two_ways_to_compare_are_refused():
    with pytest.raises(RecipeError, match="two ways"):
        ExactDuplicate(by="url", columns=("width",))


def test_each_way_reads_what_it_compares():
    stage = ExactDuplicate(columns=("url", "lang.language"), keep=Keep(column="w", order="asc"))
    assert [getattr(c, "name", c) for c in stage.reads] == ["url", "lang.language", "w"]
    ways = ("bytes", "pixels", "url", "caption")
    named = [ExactDuplicate(by=by).reads[0].name for by in ways]
    assert named == ["sha256", "image", "url", "text"]


@pytest.mark.parametrize("by", ["pixels", "url", "caption"])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_pool_of_a_row_or_none_has_no_duplicates(by, rows, memory_shards, memory_context):
    stage, ctx = ExactDuplicate(by=by), memory_context()
    column = stage.reads[0]
    value = picture(0) if by == "pixels" else "x"
    shard = lettered(**{column.name: pa.array([value] * rows, column.dtype)})
    stage.run(Inputs(rows=memory_shards(shard, shard[:0])), ctx)
    assert [k for t in ctx.stored for k in t["duplicate_of"].to_pylist()] == [None] * rows


def test_random_columns_equal_a_plain_dictionary(memory_shards, memory_context):
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = int(rng.integers(1, 26))
        a_N, b_N = rng.integers(0, 3, (2, rows)).tolist()
        a_N = [None if rng.random() < 0.1 else value for value in a_N]
        table = lettered(a=pa.array(a_N, pa.int64()), b=pa.array([str(b) for b in b_N]))
        named, _ = keepers(memory_context(), table, memory_shards, columns=("a", "b"))
        first: dict = {}
        want = []
        for number, pair in enumerate(zip(a_N, b_N, strict=True)):
            best = first.setdefault(pair, number)
            want.append(None if best == number or pair[0] is None else chr(97 + best))
        assert named == want
