"""A table of a run: equal to all its rows read one by one, whatever was asked and passed over."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.parquet_file import opened
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows import scan, small_files
from clipmill.pipeline.ledger.rows.columns import column_at
from clipmill.pipeline.ledger.rows.query import query
from clipmill.pipeline.ledger.rows.table import (
    UnfinishedWarning,
    glob_of,
    table,
    unfinished_note,
)
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState
from tests import numbered

pytestmark = pytest.mark.usefixtures("own_stages")


@pytest.fixture(scope="module")
def run(numbered_state) -> RunState:
    return numbered_state


@pytest.fixture(params=["small files", "large files"])
def way(request, monkeypatch):
    """Whether files are so small that Polars reads them whole."""
    if request.param == "large files":
        monkeypatch.setattr(small_files, "SMALL_BYTES", 0)
    return request.param


def by_hand(state: RunState, stage: str, columns: list[str]) -> list[dict]:
    """Every row over a stage's root, with its place and these columns, read one by one."""
    root = state.plan.stages[stage].root
    found = []
    for shard in sorted(state.stages[root].shards):
        for position in range(state.stages[root].shards[shard].rows):
            row = {"uid": state.uid(root, shard, position), "shard": shard, "position": position}
            for name in columns:
                at, column = column_at(state.plan, stage, name)
                row[name] = state.cell(at, shard, position, [column])[column]
            found.append(row)
    return found


def numbers(frame: pl.LazyFrame, column: str = "a") -> list[int]:
    return frame.collect()[column].to_list()


def test_a_pool_has_all_its_rows_and_columns_of_stages_after_it(run, way):
    columns = ["url", "text", "one.b", "e", "shard", "position"]
    rows = table(run, "pool", columns).collect()
    wanted = by_hand(run, "pool", ["url", "text", "one.b", "late.e"])
    assert rows.columns == ["uid", *columns]
    assert rows.rows(named=True) == [
        {"e" if name == "late.e" else name: value for name, value in row.items()} for row in wanted
    ]


def test_a_glob_means_the_brackets_of_a_folders_name_as_they_are(tmp_path):
    (folder := tmp_path / "tries[1]").mkdir()
    numbered.write_pool(folder)
    pool = numbered.run(folder, numbered.STAGES.partition("one:")[0])
    assert len(pl.read_parquet(glob_of(pool, "pool"))) == len(numbered.ROWS)


def test_a_select_stage_has_the_rows_that_it_keeps(run, way):
    assert numbers(table(run, "last", ["a"])) == list(numbered.KEPT)
    assert numbers(table(run, "first", ["pool.a"]), "pool.a") == [
        *(n for n in numbered.ROWS if n > 3 and n % 5 and n % 7)
    ]


@pytest.mark.parametrize(
    ("stage", "reason", "rows"),
    [
        ("last", "e <> 9", [9]),
        ("last", ["b < 18", "e <> 9"], [9, 18, 19]),
        ("last", "dropped_before", [1, 2, 3, 5, 7, 10, 14, 15, 20]),
        ("one", "unlucky", [5, 10, 15]),
        ("one", True, [5, 10, 15, 20]),
        ("late", True, [4, 8, 12, 16]),
        ("late", "not_selected", [1, 2, 3, 5, 7, 10, 14, 15, 20]),
        ("pool", "dropped_before", []),
    ],
)
def test_dropped_rows_are_those_of_the_reason(stage, reason, rows, run, way):
    assert numbers(table(run, stage, ["text"], dropped=reason), "text") == [
        f"row {row}" for row in rows
    ]


def test_rows_count_as_the_funnel_counts_them(run, way):
    for it in funnel(run).stages:
        kept = table(run, it.stage, []).collect().height
        lost = table(run, it.stage, [], dropped=True).collect().height
        given = it.rows - it.not_selected - it.dropped.get("dropped_before", 0)
        is_select = run.plan.stages[it.stage].is_select
        assert kept == (it.fine if is_select else given)
        assert lost == (sum(it.dropped.values()) if is_select else given - it.fine)
        for reason, rows in {**it.failed, **it.dropped}.items():
            rows += it.upstream.get(reason, 0)
            assert table(run, it.stage, [], dropped=reason).collect().height == rows


def test_rows_outside_a_mask_were_never_given_to_the_stage(run, way):
    first = [*(n for n in numbered.ROWS if n > 3 and n % 5 and n % 7)]
    rows = table(run, "late", ["a", "e", "reason", "first.keep"]).collect()
    assert rows["a"].to_list() == first
    assert rows["e"].to_list() == [None if n % 4 == 0 else n for n in first]
    assert set(rows["reason"].to_list()) == {"unlucky", None}
    assert rows["first.keep"].all()


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ("a > 5 AND b IS NOT NULL", lambda a: a > 5 and a % 5 and a != 20),
        ("two.c = 6", lambda a: a == 6),
        ("a > 500", lambda a: False),
        ("text LIKE 'row 1%'", lambda a: str(a)[0] == "1"),
        (f"uid IN ('{numbered.uid(4)}', '{numbered.uid(9)}', 'none')", lambda a: a in (4, 9)),
        ("one.reason = 'unlucky' OR a = 1", lambda a: a in (1, 5, 10, 15)),
        ("position = 0 AND shard > 0", lambda a: a in (8, 15)),
        ("1 = 1", lambda a: True),
    ],
)
def test_a_condition_is_that_of_select_where(where, meets, run):
    found = table(run, "pool", ["text"], where=where).collect()["text"].to_list()
    assert found == [f"row {a}" for a in numbered.ROWS if meets(a)]


QUERIES = [
    lambda it: it.filter(pl.col("a") > 9).head(3),
    lambda it: it.head(9).filter(pl.col("a") > 5),
    lambda it: it.select("text"),
    lambda it: it.filter(pl.col("b") > 9).select("text", pl.col("a") + 1),
    lambda it: it.select(pl.len()),
    lambda it: it.filter(pl.col("b").is_null()).select(pl.len()),
    lambda it: it.slice(4, 9),
    lambda it: it.tail(3),
    lambda it: it.head(0),
    lambda it: it.sort("a", descending=True, nulls_last=True).head(4),
    lambda it: it.group_by("shard").agg(pl.len(), pl.col("a").sum()).sort("shard"),
    lambda it: it.filter(pl.col("shard") == 1).select("position"),
    lambda it: it.filter(pl.lit(False)),
    lambda it: it.join(it.select("uid", again="b"), on="uid").sort("a"),
]


@pytest.mark.parametrize("few", [scan.FEW, 2])
def test_a_query_gives_what_it_gives_of_rows_in_memory(few, way, run, monkeypatch):
    monkeypatch.setattr(scan, "FEW", few)
    monkeypatch.setattr(small_files, "AT_ONCE", few)
    monkeypatch.setattr(small_files, "FRAME_BYTES", few)
    where = "a <> 3 OR a IS NULL" if few == 2 else None
    asked = ("one", ["a", "b", "text", "shard", "position"], where)
    lazy = table(run, *asked)
    held = lazy.collect().lazy()
    others = [
        (number, engine)
        for number, query in enumerate(QUERIES)
        for engine in ("in-memory", "streaming")
        if not query(lazy).collect(engine=engine).equals(query(held).collect())
    ]
    assert others == []


def test_a_shard_without_such_rows_is_not_opened(run, monkeypatch):
    files = []
    monkeypatch.setattr(small_files, "SMALL_BYTES", 0)
    monkeypatch.setattr(
        "clipmill.metadata.parquet_file.opened",
        lambda folder, name, *more: (
            files.append((str(folder), name[:6])) or opened(folder, name, *more)
        ),
    )
    table(run, "one", ["text"], dropped="no_number").collect()
    assert {shard for _, shard in files} == {"000002"}, "by the records"
    files.clear()
    table(run, "one", ["text"]).select("text").filter(pl.col("text") == "row 3").collect()
    assert not [file for file in files if "stages/one" in file[0]], "it is read by nobody"
    files.clear()
    table(run, "pool", ["text", "b"]).head(2).collect()
    assert {shard for _, shard in files} == {"000000"}


def test_a_small_file_is_read_only_where_it_is_used(run, monkeypatch):
    files = []
    real = small_files._sound
    monkeypatch.setattr(
        small_files,
        "_sound",
        lambda folder, name: files.append((str(folder), name[:6])) or real(folder, name),
    )
    table(run, "one", ["text"], dropped="no_number").collect()
    assert {shard for _, shard in files} == {"000002"}
    assert len(files) == 2, "of the pool and of `one`"
    files.clear()
    table(run, "pool", ["text", "b"]).select("text").collect()
    assert len(files) == 3


@pytest.mark.parametrize(
    ("nbytes", "frames"),
    [(100, [2, 4, 8, 6]), (40, [2, 4, 4, 4, 4, 2]), (35, [2, 4, 4, 4, 4, 2]), (1, [1] * 20)],
)
def test_frames_of_small_files_grow_up_to_so_many_bytes(nbytes, frames, monkeypatch):
    monkeypatch.setattr(small_files, "AT_ONCE", 2)
    monkeypatch.setattr(small_files, "FRAME_BYTES", nbytes)
    monkeypatch.setattr(small_files, "_size", lambda asked, stage, shard: 5)
    groups = [*small_files._groups(None, ["one", "two"], range(20))]
    assert [len(group) for group in groups] == frames
    assert [shard for group in groups for shard in group] == [*range(20)]


def test_a_changed_byte_of_any_file_is_told_and_gives_no_value(way, numbered_copy):
    state = numbered_copy
    one = state.stages["one"]
    file = Path(str(one.folder)) / one.shards[1].files[0]
    body = bytearray(file.read_bytes())
    body[len(body) // 3] ^= 1
    file.unlink()  # the copy's link
    file.write_bytes(body)
    with pytest.raises((DamagedError, pl.exceptions.ComputeError), match=r"(?s)changed.*000001-"):
        table(state, "pool", ["a", "b"]).collect()


def test_only_row_groups_with_such_rows_are_read(run, monkeypatch):
    asked = []
    real = pa.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pa.parquet.ParquetFile,
        "read_row_group",
        lambda file, group, **more: asked.append(more["columns"]) or real(file, group, **more),
    )
    found = table(run, "pool", ["text"], where="two.c = 6").collect()
    assert found["text"].to_list() == ["row 6"]
    assert asked == [["uid", "text"]]


MASKED = """
  chosen: {uses: select.where, from: numbers, where: number < 3 OR number > 27}
  cube:   {uses: toy.power, from: numbers, only: chosen, exponent: 3}
"""


@pytest.mark.parametrize("few", [scan.FEW, 2])
def test_later_passes_stand_in_their_places(few, engine, monkeypatch):
    monkeypatch.setattr(scan, "FEW", few)
    engine.run(MASKED)
    state = engine.run(MASKED, "chosen.where=number < 9").outcome.state
    assert len(state.stages["cube"].scan.records[0]) == 2
    rows = table(state, "numbers", ["number", "power", "cube.reason"])
    wanted = [n**3 if n % 7 else None for n in range(9)] + [None] * 22
    assert rows.collect()["power"].to_list() == wanted
    assert rows.filter(pl.col("number") > 5).head(2).collect()["power"].to_list() == wanted[6:8]
    assert table(state, "cube", ["number"]).collect()["number"].to_list() == list(range(9))
    assert table(state, "cube", [], dropped="not_selected").collect().height == 22
    assert rows.filter(pl.col("cube.reason") == "not_selected").collect().height == 22


UNION = """
left:  {uses: ingest.url_list, path: LEFT, shard_rows: 9}
right: {uses: ingest.url_list, path: RIGHT, shard_rows: 4}
words: {uses: annotate.caption, from: left}
both:  {uses: ingest.union, from: [left, right]}
count: {uses: annotate.caption, from: both}
long:  {uses: select.where, from: count, where: "caption_words >= 3"}
"""


@pytest.fixture(scope="module")
def union(tmp_path_factory) -> RunState:
    folder, text = tmp_path_factory.mktemp("union"), UNION
    for side, rows in (("left", 20), ("right", 7)):
        lines = [{"url": f"http://{side}.test/{i}", "text": "a " * (i % 5)} for i in range(rows)]
        file = folder / f"{side}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        text = text.replace(side.upper(), str(file))
    recipe = Recipe(name="union", path="union.yaml", seed=0, stages=yaml.safe_load(text))
    plan, out = make_plan(recipe), Storage(str(folder / "run"))
    return run_plan(plan, out, LocalExecutor(0), Lines()).state


def test_a_union_has_the_rows_of_both_and_columns_over_them(union):
    rows = table(union, "long", ["url", "source", "caption_words"]).collect()
    urls = [f"http://left.test/{i}" for i in range(20) if i % 5 > 2]
    urls += [f"http://right.test/{i}" for i in range(7) if i % 5 > 2]
    assert rows["url"].to_list() == urls
    assert rows["source"].to_list() == [url[7:].partition(".")[0] for url in urls]
    assert table(union, "words", ["caption_words"]).collect().height == 20


def test_columns_over_other_rows_are_refused(union):
    with pytest.raises(RecipeError) as error:
        table(union, "long", ["words.caption_words"])
    assert error.value.args[0] == "the rows of 'words' are not those of 'long'"
    assert "both, count, long" in error.value.args[2]


def test_an_unfinished_run_gives_what_is_there_and_says_so(numbered_copy):
    late = numbered_copy.stages["late"]
    late.folder.delete(late.scan.records[1][0].name)
    state = RunState(numbered_copy.plan, numbered_copy.run)
    with pytest.warns(UnfinishedWarning, match="'late' has 2 of 3 shards") as warned:
        rows = table(state, "pool", ["a", "e"])
    assert warned[0].filename == __file__
    assert numbers(rows) == [*range(1, 8), *range(15, 20), None]
    assert numbers(table(state, "pool", ["a"])) == [*range(1, 20), None], "which reads no `late`"
    (unfinished,) = query(state, "last", ["a"]).unfinished
    assert (
        unfinished_note([unfinished])
        == "'last' has 0 of 3 shards: the rows of the others are left out"
    )
    with pytest.warns(UnfinishedWarning):
        assert table(state, "last", ["a"]).collect().schema == {"uid": pl.String, "a": pl.Int64}


def test_lists_and_pictures_are_read_a_few_rows_at_a_time(captioned, monkeypatch):
    monkeypatch.setattr(scan, "FEW", 7)
    lists = [
        (name, column.name)
        for name, planned in captioned.plan.stages.items()
        for column in planned.stage.writes
        if planned.root == "pool" and (pa.types.is_nested(column.dtype) or column.name == "image")
    ]
    assert lists
    columns = [f"{stage}.{column}" for stage, column in lists]
    rows = table(captioned, "pool", columns).collect()
    wanted = by_hand(captioned, "pool", columns)
    assert rows["uid"].to_list() == [row["uid"] for row in wanted]
    for column in columns:
        assert rows[column].to_list() == [row[column] for row in wanted], column


@pytest.mark.parametrize(
    ("stage", "columns", "more", "found", "do"),
    [
        ("lats", ["a"], {}, "no stage 'lats'", "did you mean 'late' or 'last'?"),
        ("uids", ["a"], {}, "the stage 'uids' has no rows", "name a stage that has some"),
        ("last", ["ulr"], {}, "no stage writes column 'ulr'", "did you mean 'url'?"),
        ("last", ["onne.b"], {}, "no stage 'onne', in 'onne.b'", "did you mean 'one'?"),
        ("last", ["one.c"], {}, "'one' writes no 'c'", "'one' writes: b, reason"),
        ("pool", ["keep"], {}, "column 'keep' comes from 'first' and 'last'", "first.keep"),
        ("pool", [], {"where": "ulr = 'a'"}, "no stage writes column 'ulr'", "'url'"),
        ("pool", [], {"where": "a >"}, "not SQL", "mend it there"),
        ("pool", [], {"where": "a LIKE 'x'"}, "`a LIKE 'x'`", ""),
        ("pool", [], {"where": "a = 'x'"}, "a = 'x'", ""),
        ("last", [], {"dropped": "e <> 8"}, "'last' drops no row for 'e <> 8'", "'e <> 9'"),
        ("first", [], {"dropped": "e <> 9"}, "'first' drops no row for 'e <> 9'", "of 'last': ask"),
        ("last", [], {"dropped": ["b < 18", "unlucky"]}, "for 'unlucky'", "'one' and 'two' and"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(stage, columns, more, found, do, run):
    with pytest.raises(RecipeError) as error:
        table(run, stage, columns, **more)
    assert found in error.value.args[0]
    assert do in error.value.args[2]


def test_uids_and_words_are_text(run, way):
    rows = table(run, "one", ["reason"], dropped=True)
    assert rows.collect_schema() == {"uid": pl.String, "reason": pl.String}
    assert rows.collect().schema == rows.collect_schema()
    assert rows.collect()["uid"][0] == uid_of("http://a.test/5", "row 5").hex()


@pytest.mark.parametrize("ran", ["state", "captioned", "clustered"])
def test_the_rows_of_every_stage_count_as_the_funnel_counts_them(ran, request):
    state = request.getfixturevalue(ran)
    for it in funnel(state).stages:
        lost = {**it.failed, **it.dropped}
        for reason, rows in lost.items():
            rows += it.upstream.get(reason, 0)
            assert table(state, it.stage, [], dropped=reason).collect().height == rows
        if state.plan.stages[it.stage].is_select:
            assert table(state, it.stage, ["text"]).collect().height == it.fine


@pytest.mark.parametrize("few", [scan.FEW, 2])
def test_a_column_that_is_read_from_the_source_is_there_as_any(few, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "FEW", few)
    text = [f"row {i}" for i in range(7)]
    pool = {"uid": [f"{i:032x}" for i in range(7)], "url": text, "text": text, "sha256": text}
    pool |= dict.fromkeys(("original_width", "original_height"), pa.array([1] * 7, pa.int32()))
    pq.write_table(pa.table(pool), tmp_path / "a.parquet")
    vectors = np.arange(7 * 512, dtype=np.float16).reshape(7, 512)
    np.savez(tmp_path / "a.npz", b32_img=vectors)
    stages = {"pool": {"uses": "ingest.datacomp", "path": str(tmp_path), "shard_rows": 4}}
    plan = make_plan(Recipe(name="it", path="it.yaml", seed=0, stages=stages))
    state = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state
    rows = table(state, "pool", ["b32_img", "text"])
    assert rows.collect()["b32_img"].to_list() == vectors.tolist()
    assert rows.collect().schema == rows.collect_schema()
    few_rows = table(state, "pool", ["b32_img"], where="text IN ('row 2', 'row 6')")
    assert few_rows.collect()["b32_img"].to_list() == vectors[[2, 6]].tolist()
