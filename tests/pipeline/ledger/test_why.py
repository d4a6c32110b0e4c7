"""Why a sample is where it is: every row of the numbered run, and what else can be asked."""

import json
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows import uids
from clipmill.pipeline.ledger.rows.stage_row import Keeper
from clipmill.pipeline.ledger.selection.why import why
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.verbs.why import text
from tests import numbered
from tests.pipeline.ledger.conftest import FOX, NAMED, ROWS, number

pytestmark = pytest.mark.usefixtures("own_stages")
CAUSE_OF = {row: cause for cause, rows in numbered.CAUSES.items() for row in rows}


@pytest.fixture(scope="module")
def state(numbered_state):
    return numbered_state


def said(found, stage: str) -> tuple:
    (it,) = (s for s in found.stages if s.stage == stage)
    return it.values, it.reason


@pytest.mark.parametrize("row", numbered.ROWS)
def test_every_row_has_the_cause_that_the_funnel_counts_it_under(row, state):
    *_, end = why(state, numbered.uid(row)).ends
    assert end.kept == (row in numbered.KEPT)
    assert (end.cause, end.reason) == CAUSE_OF.get(row, (None, None))


def test_every_stage_says_its_value_and_its_reason(state):
    found = why(state, numbered.uid(12))
    assert (found.shard, found.position, found.copies) == (1, 4, 1)
    pool = {"url": "http://a.test/12", "text": "row 12", "a": 12}
    assert said(found, "pool") == (pool, None)
    assert said(found, "two") == ({"c": 12}, None)
    assert said(found, "first") == ({"keep": True}, None)
    assert said(found, "late") == ({"e": None}, "unlucky")
    assert said(found, "last") == ({"keep": False}, "undefined:e")
    assert said(why(state, numbered.uid(1)), "late") == ({"e": None}, "not_selected")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (6, "kept by 'last'"),
        (9, "dropped by 'last': e <> 9; e is 9"),
        (18, "dropped by 'last': b < 18; b is 18"),
        (2, "dropped by 'first', before 'last': c > 3; c is 2"),
        (10, "dropped by 'last', since 'one' gave no value: unlucky"),
        (16, "dropped by 'last', since 'late' gave no value: unlucky"),
    ],
)
def test_a_sentence_says_who_dropped_it_by_which_rule_and_value(row, sentence, state):
    found = why(state, numbered.uid(row))
    assert found.ends[-1].sentence == sentence
    assert sentence in text(found)


def test_the_page_begins_with_what_became_of_the_row_and_has_plain_words(state):
    said = text(why(state, numbered.uid(10)), True).splitlines()
    assert said[1] == "dropped by 'last', since 'one' gave no value: unlucky"
    assert "first  select.where: c has no value" in said
    assert not [line for line in said if line.endswith("None")]  # the reason says as much
    twice = why(state, numbered.uid(2))
    one = replace(twice.ends[-1], sentence="dropped once more")
    again = text(replace(twice, ends=(*twice.ends, one)), True)
    assert "dropped once more" in again
    assert twice.ends[-1].sentence not in again  # one cause, one sentence


def test_a_reason_of_a_row_whose_values_are_there_is_no_cause(tmp_path):
    numbered.write_pool(tmp_path)
    pool = (tmp_path / "pool.jsonl").read_text().replace('"a": 10}', '"a": 10, "size": "large"}')
    (tmp_path / "pool.jsonl").write_text(pool)
    state = numbered.run(tmp_path, numbered.STAGES.replace("a: int64}", "a: int64, size: int64}"))
    end = why(state, numbered.uid(10)).ends[-1]
    assert (end.cause, end.reason) == ("one", "unlucky")
    assert said(why(state, numbered.uid(10)), "pool")[1] == "bad_value"


def test_a_rule_on_the_picture_itself_has_no_value_to_show(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    pool = {"uses": "ingest.image_folder", "path": str(tmp_path)}
    none = {"uses": "select.where", "from": "pool", "where": "image IS NULL"}
    stages = {"pool": pool, "none": none}
    plan = make_plan(Recipe(name="mine", path="mine.yaml", seed=0, stages=stages))
    state = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state
    (end,) = why(state, state.uid("pool", 0, 0)).ends
    assert end.sentence == "dropped by 'none': image IS NULL"


def test_a_value_on_the_threshold_is_at_it_in_the_columns_type(tmp_path):
    numbered.write_pool(tmp_path)
    stages = """
pool: {uses: ingest.url_list, path: none, uid_col: id, extra: {a: float32}}
tens: {uses: select.where, from: pool, where: a / 10 >= 0 AND a <> 0.3}
"""
    pool = (tmp_path / "pool.jsonl").read_text().replace('"a": 10}', '"a": 0.3}')
    (tmp_path / "pool.jsonl").write_text(pool)
    found = why(numbered.run(tmp_path, stages), numbered.uid(10))
    (rule,) = found.ends[-1].deciding
    assert (rule.apart, rule.value == rule.limit) == (0, False)  # float32 has no 0.3
    assert "a 0.3 is at 0.3; 'tens' keeps <> 0.3" in text(found)


def test_a_row_outside_a_mask_is_told_so(tmp_path):
    numbered.write_pool(tmp_path)
    wide = numbered.STAGES.replace("from: [first, late, one]", "from: [late, one]")
    state = numbered.run(tmp_path, wide)
    end = why(state, numbered.uid(2)).ends[-1]
    assert (end.cause, end.reason) == ("late", "not_selected")
    assert end.sentence == "dropped by 'last': 'first' did not select it for 'late'"


@pytest.mark.parametrize("change", [str, str.upper, lambda uid: uid[:8], lambda uid: f" {uid}\n"])
def test_a_uid_may_be_cut_to_8_digits_and_written_in_capitals(change, state):
    assert why(state, change(numbered.uid(7))).uid == numbered.uid(7)


@pytest.mark.parametrize("wrong", ["", "1234567", "not a uid at all", "0" * 33])
def test_what_is_no_uid_is_refused(wrong, state):
    with pytest.raises(RecipeError, match="is no uid"):
        why(state, wrong)


def test_a_uid_that_is_not_there_is_refused(state):
    with pytest.raises(RecipeError, match="no sample 00000000"):
        why(state, "0" * 32)


def pool_with_uids(folder, uids: list[str]) -> str:
    lines = [
        json.dumps({"url": u[:9], "text": u, "a": 30 + i, "id": u}) for i, u in enumerate(uids)
    ]
    (folder / "pool.jsonl").write_text("\n".join(lines))
    return numbered.STAGES.replace("shard_rows: 7", "shard_rows: 2, uid_col: id")


def test_an_ambiguous_beginning_lists_the_samples_it_could_be(tmp_path):
    uids = ["ab" * 16, "ab" * 15 + "cd", "ef" * 16]
    state = numbered.run(tmp_path, pool_with_uids(tmp_path, uids))
    with pytest.raises(RecipeError) as error:
        why(state, "abababab")
    assert "2 samples begin with abababab" in str(error.value)
    assert all(uid in str(error.value) for uid in uids[:2])
    assert why(state, uids[1]).uid == uids[1]
    assert why(state, "efefefef").position == 0


def test_a_uid_that_repeats_shows_its_first_row_and_how_many_there_are(tmp_path):
    uids = ["ab" * 16, "ef" * 16, "ab" * 16]
    found = why(numbered.run(tmp_path, pool_with_uids(tmp_path, uids)), "abababab")
    assert (found.copies, found.shard, found.position) == (2, 0, 0)
    assert said(found, "pool")[0]["a"] == 30
    assert "this uid stands in 2 rows" in text(found)


# A stage that names another row, or an evaluation sample


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            2,
            "dropped by 'last': same.duplicate_of IS NULL; equal to it, and better, is 00000000…"
            " (shard 0, position 0): 'a red circle on white paper'",
        ),
        (
            3,
            "dropped by 'last': joined_at IS NULL OR joined_at < 0.9; joined_at is 1.0;"
            f" near it, and better, is 00000000… (shard 0, position 1): '{FOX}'",
        ),
        (
            4,
            "dropped by 'last': earlier_cosine IS NULL OR earlier_cosine < 0.95; earlier_cosine is"
            " 0.96875; most like it, of the rows before it, is 00000000… (shard 0, position 1):"
            f" '{FOX}'",
        ),
        (
            5,
            "dropped by 'last': eval_overlap < 0.5; eval_overlap is 1.0;"
            " nearest to it is sample 'a/7' of task 'dogs'",
        ),
        (
            6,
            "dropped by 'last': same.duplicate_of IS NULL; equal to it, and better, is 00000000…"
            f" (shard 1, position 1, itself dropped by 'last'): '{'x' * 80}…'",
        ),
        (0, "kept by 'last'; keeper of 1 row in 'same'"),
        (1, "kept by 'last'; keeper of 1 row in 'alike'"),
    ],
)
def test_a_sentence_names_the_keeper_or_the_evaluation_sample(row, sentence, named):
    found = why(named, number(row))
    assert found.ends[-1].sentence == sentence
    assert sentence in text(found)


def test_who_the_keeper_is_stands_with_the_stage_that_names_it(named):
    found = {said.stage: said for said in why(named, number(2)).stages}
    row = partial(Keeper, uid=number(0), shard=0, position=0, text=ROWS[0][0], dropped_by=())
    assert found["same"].keeper == row(column="duplicate_of")
    assert found["near"].keeper == row(column="earlier_uid")
    assert found["same"].keeper_of is None
    assert found["alike"].keeper is None
    assert found["alike"].keeper_of == 0
    assert (found["pool"].keeper, found["pool"].keeper_of) == (None, None)
    shown = text(why(named, number(2)), True)
    assert f"which is               shard 0, position 0: '{ROWS[0][0]}'" in shown
    assert "keeper of              1 row\n" in text(why(named, number(0)), True)


def test_of_a_uid_that_repeats_the_keeper_is_the_other_row(tmp_path):
    best = "by: url, keep: {column: cosine, order: desc}"
    stages = NAMED[: NAMED.index("alike:")].replace("columns: [group]", best)
    line = {"url": "http://a.test/1", "group": "", "near": ""}
    rows = [(0, "first", 0.5), (1, "other", 0.25), (0, "second", 0.75)]
    lines = [{**line, "id": number(i), "text": t, "cosine": cosine} for i, t, cosine in rows]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = why(numbered.run(tmp_path, stages), number(0))
    assert (found.copies, found.position) == (2, 0)
    keeper = found.stages[1].keeper
    assert (keeper.uid, keeper.position, keeper.text) == (number(0), 2, "second")


def test_a_keeper_that_the_pool_does_not_have_is_said_to_be_gone(named, monkeypatch):
    monkeypatch.setattr(uids, "rows_of_uids", lambda *_: iter(()))
    found = why(named, number(2))
    assert found.ends[-1].sentence.endswith("is 00000000… (no row of the pool)")
    keeper = {stage.stage: stage.keeper for stage in found.stages}["same"]
    assert (keeper.uid, keeper.shard, keeper.position) == (number(0), None, None)
    assert "which is               no row of the pool\n" in text(found, True)


def test_a_column_of_that_name_that_holds_no_uids_names_nobody(tmp_path):
    stages = NAMED[: NAMED.index("same:")].replace("group: string", "duplicate_of: string")
    line = {"id": number(0), "url": "http://a.test/1", "text": "x", "duplicate_of": "yes"}
    (tmp_path / "pool.jsonl").write_text(json.dumps({**line, "near": "", "cosine": 0}))
    (pool,) = why(numbered.run(tmp_path, stages), number(0)).stages
    assert pool.values["duplicate_of"] == "yes"
    assert pool.keeper is None


# In the run of every stage: two roots meet, images are exported


def test_a_row_of_two_roots_is_followed_through_the_union(every_stage):
    (row, *_) = every_stage.values(every_stage.stage_of("export.parquet"))
    found = why(every_stage.state, row["uid"])
    stages = [it.stage for it in found.stages]
    assert {"both", "look", "near", "subset"} <= set(stages), "what the union's rows went through"
    assert {"tars", "folder"} & set(stages), "and where they come from"
    (end,) = [end for end in found.ends if end.stage == "subset"]
    assert end.sentence.startswith("kept by 'subset'")
    assert found.copies == 1


def test_a_larger_root_beside_a_smaller_one_can_be_asked_to_its_end(tmp_path):
    numbered.write_pool(tmp_path)
    (tmp_path / "more.jsonl").write_text('{"url": "http://b.test", "text": "alone", "a": 1}')
    more = f"more: {{uses: ingest.url_list, path: {tmp_path / 'more.jsonl'}}}\n"
    state = numbered.run(
        tmp_path, numbered.STAGES.replace("shard_rows: 7", "shard_rows: 20") + more
    )
    for row in numbered.ROWS:
        assert why(state, numbered.uid(row)).ends[-1].kept == (row in numbered.KEPT)


def test_an_exported_row_names_its_file(every_stage):
    (row, *_) = every_stage.values(every_stage.stage_of("export.parquet"))
    places = why(every_stage.state, row["uid"]).exported
    assert {"shards", "samples", "hub"} <= {place.stage for place in places}
    for place in places:
        uids = pq.read_table(place.file, columns=["uid"])["uid"].to_pylist()
        assert bytes.fromhex(row["uid"]) in uids or row["uid"] in uids
    dropped = next(
        r for r in every_stage.values(every_stage.stage_of("select.where")) if not r["keep"]
    )
    found = why(every_stage.state, dropped["uid"]).exported
    assert {place.stage for place in found} == {"atlas"}  # a map shows what was dropped, too


def test_values_are_shown_short_and_images_not_at_all(every_stage):
    (row, *_) = every_stage.values(every_stage.stage_of("export.parquet"))
    found = why(every_stage.state, row["uid"])
    assert found.stages
    assert all("image" not in it.values for it in found.stages)
    assert said(found, "emb")[0]["image_embedding"].endswith("… 64 values]")
    json.dumps(as_json(found), allow_nan=False)
