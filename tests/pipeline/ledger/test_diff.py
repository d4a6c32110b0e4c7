"""diff: every count against each row looked at by itself, and against the funnel of each side."""

import json
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection import joined, sides
from clipmill.pipeline.ledger.selection.diff import Diff, Outcome, diff
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.sides import Side, side_of
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import latest
from clipmill.pipeline.verbs.diff import text
from tests import numbered
from tests.artefacts import linked
from tests.conftest import OWN_STAGES

pytestmark = pytest.mark.usefixtures("own_stages")

ROWS = 300
STARS = ("sun", "moon", "star")
STAGES = """
pool:  {uses: ingest.url_list, path: none, shard_rows: 70,
        extra: {a: int64, language: string, min_side: int64, cluster_id: int64}}
one:   {uses: probe.copy, from: pool, column: a, to: b, unlucky: 5}
first: {uses: select.where, from: one, where: b % 3 > 0}
late:  {uses: probe.copy, from: pool, column: a, to: e, unlucky: 4, only: first}
last:  {uses: select.where, from: [first, late, pool], where: "language = 'en' AND e < 250"}
"""
OTHER = STAGES.replace("b % 3 > 0", "b % 4 > 0").replace("e < 250", "e < 200")


def write_pool(folder, order, name: str = "pool") -> None:
    """Rows of these numbers; a uid hangs on link and caption, which two rows share."""
    rows = pa.table(
        {
            "url": [f"https://{'ab'[i % 2]}.test/{i if i != 9 else 8}" for i in order],
            "text": [f"{STARS[i % 3 if i != 9 else 2]} {i if i != 9 else 8}" for i in order],
            "a": pa.array([None if i % 50 == 0 else i for i in order], pa.int64()),
            "language": [["en", "en", "de", None][i % 7 % 4] for i in order],
            "min_side": pa.array([10 * (i % 30) for i in order], pa.int64()),
            "cluster_id": pa.array([i % 8 or None for i in order], pa.int64()),
        }
    )
    pq.write_table(rows, folder / f"{name}.parquet")


def run(folder, text: str, out: str = "run", pool: str = "pool", **settings: object) -> None:
    stages = yaml.safe_load(text)
    stages["pool"] |= {"path": str(folder / f"{pool}.parquet"), **settings}
    plan = make_plan(Recipe(name="mine", path="mine.yaml", seed=0, stages=stages))
    assert run_plan(plan, Storage(str(folder / out)), LocalExecutor(0), Lines()).complete


def run_each(folder) -> None:
    """One run with two variants; the pool again in other shards, in another order, and grown."""
    write_pool(folder, range(ROWS))
    write_pool(folder, np.random.default_rng(3).permutation(ROWS).tolist(), "mixed")
    write_pool(folder, range(ROWS + 80), "grown")
    for stages in (STAGES, OTHER, STAGES, OTHER):  # `late` is wider then, and what reads it other
        run(folder, stages)
    run(folder, OTHER, "same")
    run(folder, OTHER, "mixed", "mixed", shard_rows=41)
    run(folder, OTHER, "grown", "grown")


@pytest.fixture(scope="module")
def folder(own_stages, artefacts):
    return artefacts("compared", run_each, OWN_STAGES)


@dataclass
class Row:
    """What a row is, and its outcome, as one row of a table has it."""

    number: tuple[str, int]  # uid and which of its rows
    outcome: Outcome
    groups: dict[str, str]


def looked_at(side: Side) -> dict[tuple[str, int], Row]:
    """Each row by itself: its reasons, back from the end."""
    state, found = side.state, {}
    met: Counter[str] = Counter()
    columns = {"one": ["reason"], "first": ["reason"], "late": ["reason"], "last": ["reason"]}
    columns |= {"pool": ["uid", "url", "language", "min_side", "cluster_id", "reason"]}
    for shard in side.shards:
        tables = {
            name: pa.concat_tables(
                state.stored[name].read(state.stages[name].shards[shard], wanted, 1000)
            ).to_pylist()
            for name, wanted in columns.items()
        }
        for i, row in enumerate(tables["pool"]):
            reason = {name: rows[i]["reason"] for name, rows in tables.items()}
            uid = row["uid"].hex()
            size = joined.group_of("size", pa.chunked_array([[row["min_side"]]]))[0].as_py()
            groups = {
                "language": row["language"] or "(none)",
                "domain": row["url"].split("/")[2],
                "size": size,
                "cluster": str(row["cluster_id"] or "(none)"),
            }
            number = (uid, met[uid])
            met[uid] += 1
            found[number] = Row(number, outcome_of(reason, side.stage), groups)
    return found


def outcome_of(reason: dict[str, str | None], stage: str) -> Outcome:
    """The rule in words, for one row."""
    code = reason[stage]
    if code is None:
        return Outcome(what="kept")
    if code == "dropped_before":
        return outcome_of(reason, "first")
    blamed = {"undefined:b": "one", "undefined:e": "late"}.get(code)
    if code == "not_selected":
        return outcome_of(reason, "first")
    return Outcome(what="lost", stage=blamed or stage, reason=reason[blamed] if blamed else code)


ABSENT = Outcome(what="absent")


def check(found: Diff, before: Side, after: Side) -> None:
    """Every count of a diff against all rows of both sides, each looked at by itself."""
    was, now = looked_at(before), looked_at(after)
    cells: Counter[tuple[Outcome, Outcome]] = Counter()
    groups: dict[str, dict[str, np.ndarray]] = {}
    for number in {**was, **now}:
        one, other = was.get(number), now.get(number)
        cell = (one.outcome if one else ABSENT, other.outcome if other else ABSENT)
        cells[cell] += 1
        keeps = [outcome.what == "kept" for outcome in cell]
        if any(keeps):
            for name, group in (other or one).groups.items():
                of = groups.setdefault(name, {}).setdefault(group, np.zeros(4, int))
                of += [*keeps, keeps == [False, True], keeps == [True, False]]
    assert {(move.before, move.after): move.rows for move in found.moves} == cells
    for move in found.moves:
        examples = [row.uid for row in move.examples]
        assert len(examples) == (0 if move.kind == "kept" else min(12, move.rows))
        there = {
            uid
            for uid, nth in {**was, **now}
            if (outcome(was, uid, nth), outcome(now, uid, nth)) == (move.before, move.after)
        }
        assert set(examples) <= there
    for name, known in groups.items():
        told = {of.name: [of.before, of.after, of.gained, of.lost] for of in found.groups[name]}
        assert told == {group: counts.tolist() for group, counts in known.items()}
    assert found.groups.keys() == {"language", "domain", "size", "cluster"}
    sums = Counter[str]()
    for (one, other), rows in cells.items():
        if one.what == "kept" or other.what == "kept":
            kind = "both" if one == other else "gained" if other.what == "kept" else "lost"
            sums[kind] += rows
        else:
            sums["stayed" if is_one_rule(one, other) else "moved"] += rows
    for kind in ("both", "gained", "lost", "moved", "stayed"):
        assert getattr(found, kind) == sums[kind], kind
    for side, told, all_rows in ((before, found.before, was), (after, found.after, now)):
        assert told.rows == len(all_rows)
        assert told.kept == sum(row.outcome.what == "kept" for row in all_rows.values())
        assert (told.stage, told.variant) == (side.stage, side.variant.number)


def is_one_rule(one: Outcome, other: Outcome) -> bool:
    words = [set(re.findall("[a-z_]+", outcome.reason)) for outcome in (one, other)]
    return (one.what, one.stage, words[0]) == (other.what, other.stage, words[1])


def outcome(rows: dict, uid: str, nth: int) -> Outcome:
    return rows[uid, nth].outcome if (uid, nth) in rows else ABSENT


def asked(folder, one: str, other: str) -> tuple[Side, Side, Diff]:
    before, after = side_of(f"{folder}/{one}", None), side_of(f"{folder}/{other}", None)
    return before, after, diff(before, after)


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("run@1", "run@2", "place"),
        ("run@2", "run@1", "place"),
        ("run", "run@1", "place"),
        ("run:first", "run:last", "place"),
        ("run@1:one", "run:late", "place"),
        ("run@1", "same", "place"),
        ("run@1", "mixed", "uid"),
        ("mixed", "run@1", "uid"),
        ("run@1", "grown", "uid"),
        ("grown", "run@1", "uid"),
    ],
)
def test_every_row_is_counted_by_its_outcome_on_both_sides(one, other, how, folder):
    before, after, found = asked(folder, one, other)
    assert found.joined == how
    check(found, before, after)


def test_rows_in_many_parts_are_joined_as_in_one(folder, monkeypatch):
    *_, whole = asked(folder, "run@1", "mixed")
    monkeypatch.setattr(joined, "PART_ROWS", 20)
    *_, parts = asked(folder, "run@1", "mixed")
    assert whole == parts


def test_the_same_rows_in_the_same_order_and_in_another_differ_alike(folder):
    *_, by_place = asked(folder, "run@1", "same")
    *_, by_uid = asked(folder, "run@1", "mixed")
    assert {(m.before, m.after): m.rows for m in by_place.moves} == {
        (m.before, m.after): m.rows for m in by_uid.moves
    }
    assert {n: set(g) for n, g in by_place.groups.items()} == {
        n: set(g) for n, g in by_uid.groups.items()
    }


@pytest.mark.parametrize("other", ["run@1", "run@2", "mixed", "grown"])
def test_each_side_adds_up_to_its_funnel(other, folder):
    before, after, found = asked(folder, "run@1", other)
    for side, which in ((before, "before"), (after, "after")):
        (end,) = funnel(side.state).ends
        told: Counter[tuple[str, str]] = Counter()
        for move in found.moves:
            it = getattr(move, which)
            told[it.stage, it.reason] += move.rows if it.what == "lost" else 0
        assert +told == {(cause.stage, cause.reason): cause.rows for cause in end.causes}
        selection = getattr(found, which)
        assert (selection.rows, selection.kept) == (end.rows, end.kept)


def test_rows_that_a_later_stage_fails_are_lost_as_in_the_funnel(tmp_path):
    numbered.write_pool(tmp_path)
    numbered.run(tmp_path, numbered.STAGES.partition("last:")[0])
    numbered.run(tmp_path, numbered.STAGES.partition("late:")[0])
    found = diff(*(side_of(text, str(tmp_path / "run")) for text in ("1", "2")))
    assert (found.before.kept, found.after.kept, found.gained, found.lost) == (7, 11, 4, 0)
    (gained,) = [move for move in found.moves if move.kind == "gained"]
    assert gained.before == Outcome(what="lost", stage="late", reason="unlucky")
    assert (end := funnel(latest(str(tmp_path / "run"), 1)).ends[0]).kept == 7, end


def test_a_pool_with_empty_shards_is_compared(engine):
    for limit in (20, 10):
        engine.run(f"  few: {{uses: select.where, from: numbers, where: number < {limit}}}")
    found = diff(*(side_of(text, str(engine.folder / "run")) for text in ("1", "2")))
    assert (found.both, found.gained, found.lost, found.moved, found.stayed) == (10, 0, 10, 0, 11)
    few = {outcome.reason for move in found.moves for outcome in (move.before, move.after)}
    assert few == {"", "number < 20", "number < 10"}


def test_concepts_are_counted_on_both_sides(folder, tmp_path):
    entries = [*STARS, "comet", "sun"]  # the last in another language
    rows = {"entry": entries, "language": [*["en"] * 4, "de"], "count": [None] * 5}
    pq.write_table(pa.table({**rows, "source": ["mine"] * 5}), tmp_path / "list.parquet")
    concepts = f"concepts: {tmp_path}/list.parquet"
    text = (
        "pool: {uses: ingest.url_list, shard_rows: 70, extra: {language: string}}\n"
        f"matched: {{uses: annotate.concepts, from: pool, by_language: true, {concepts}}}\n"
        f"balanced: {{uses: select.balance, from: matched, {concepts}, t: 40}}\n"
    )
    for changed in (text, text.replace("t: 40", "t: 10")):
        run(folder, changed, str(tmp_path / "run"))
    both = [side_of(text, str(tmp_path / "run")) for text in ("1", "2")]
    counts = []
    for side in both:
        bound = {"ids": ("matched", "concept_ids"), "keep": ("balanced", "keep")}
        table = stored(side.state, "pool", bound)
        rows = [row for shard in range(len(table)) for row in table.table(shard).to_pylist()]
        counts.append(Counter(entries[i] for row in rows if row["keep"] for i in row["ids"] or ()))
    told = {it.entry: (it.before, it.after) for it in diff(*both).concepts}
    assert told == {entry: (counts[0][entry], counts[1][entry]) for entry in STARS}
    assert all(before > after > 0 for before, after in told.values())


def test_nothing_differs_from_itself(folder):
    *_, found = asked(folder, "run", "run@2")
    assert (found.gained, found.lost, found.moved, found.groups) == (0, 0, 0, {})
    assert found.changes.settings == ()


def test_the_page_says_what_moved(folder):
    *_, found = asked(folder, "run@1", "run@2")
    lines = text(found).splitlines()
    assert lines[0] == (
        f"A  {folder}/run, variant 1 (mine): 'last' keeps {found.before.kept} of 300 rows"
        f" ({found.before.kept / 300:.1%})"
    )
    assert lines[2] == "   first.where: b % 3 > 0 -> b % 4 > 0"
    assert f"{f'+{found.gained}':>10}  gained: B alone keeps them" in lines
    (top, *_) = [move for move in found.moves if move.kind == "gained"]
    shown = f"{top.rows:>10}  first: b % 3 > 0  (why {top.examples[0].uid[:8]})"
    assert shown in lines


def test_the_verb_takes_variants_stages_and_runs(folder, clipmill):
    run_at = ("--run", folder / "run", "--json")
    known = asked(folder, "run@1", "run@2")[2]
    for said in (
        clipmill("diff", "1", "2", *run_at),
        clipmill("diff", f"{folder}/run@1:last", f"{folder}/run", "--json"),
        clipmill("diff", "1:last", ":last", *run_at),
    ):
        assert said.code == 0, said.err
        counts = [said.json[key] for key in ("both", "gained", "lost", "moved")]
        assert counts == [known.both, known.gained, known.lost, known.moved]
    said = clipmill("diff", "first", "last", *run_at)
    assert [said.json[side]["stage"] for side in ("before", "after")] == ["first", "last"]
    assert json.dumps(said.json)


def test_what_cannot_be_compared_is_refused_with_both_names(folder, clipmill, numbered_run):
    said = clipmill("diff", f"{folder}/run", f"{numbered_run}/run")
    assert said.code == 2
    assert "two pools: of 300 and 20 rows they have 0 in common" in said.err
    assert f"'pool' of {folder}/run and 'pool' of {numbered_run}/run" in said.err
    for one, words in (
        ("3", "no variant 3: this folder has seen 2"),
        ("nope", "no stage 'nope'"),
        ("1:pol", "did you mean 'pool'?"),
        ("1:", "'1:' as a side"),
        ("", "'' as a side"),
    ):
        said = clipmill("diff", one, "2", "--run", folder / "run")
        assert (said.code, words in said.err) == (2, True), said.err
    assert clipmill("diff", "1", "2").code == 2


def test_no_key_of_a_uri_is_told(folder, clipmill, monkeypatch, tmp_path):
    monkeypatch.setattr(sides, "Storage", lambda uri: Storage(str(folder / "run")))
    uri = "s3://AKIA:hush@bucket/run?endpoint_override=host:9000&scheme=http"
    page = tmp_path / "diff.html"
    said = clipmill("diff", f"{uri}@1:last", f"{uri}:first", "--json", "--html", page)
    assert (said.code, said.json["after"]["stage"]) == (0, "first"), said.err
    assert "s3://bucket/run?endpoint_override=host:9000&scheme=http@1:last" in said.out
    assert "hush" not in said.out + said.err + page.read_text()


def test_what_is_not_complete_is_said(folder, tmp_path, clipmill):
    linked(folder / "run", tmp_path / "run")
    last = latest(str(tmp_path / "run")).stages["last"]
    last.folder.delete(last.scan.records[0][0].name)
    said = clipmill("diff", "1", "2", "--run", tmp_path / "run")
    assert said.code == 2
    assert "'last' is not complete" in said.err
    assert "or name a stage that is: pool, one, first, late" in said.err
    said = clipmill("diff", "1:first", "2:first", "--run", tmp_path / "run")
    assert said.code == 0
    assert "   of B not complete: last" in said.out
