"""sweep: equal to running the selection again, for every form of threshold; and what it refuses."""

import itertools
import json
import threading
import weakref
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.schema import KEEP
from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.answer import as_json
from clipmill.pipeline.ledger.rows.ahead import DISK_READERS
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection import counterfactual as swept
from clipmill.pipeline.ledger.selection.counterfactual import parse
from clipmill.pipeline.ledger.selection.groups import GROUPS, Groups, rows_of_groups
from clipmill.pipeline.ledger.selection.sweep import Sweep, sweep
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.planning.selects import thresholds_of, verdicts_by_part
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.sweep_page import sweep_page
from clipmill.pipeline.run_folder.rows import PoolShards
from clipmill.pipeline.run_folder.state import RunState, latest
from clipmill.pipeline.verbs.sweep import text
from clipmill.stages.select import _cut as cut
from tests.parsed import Page

ROWS = 400
NAN = float("nan")
RECIPE = """
seed: 7
stages:
  pool:
    uses: ingest.url_list
    path: {folder}/pool.parquet
    shard_rows: 150
    extra: {{language: string, score: float32, words: int64, size: float64}}
  first: {{uses: select.where, from: pool, where: words > 1}}
"""
WHERE = "language = 'en' AND score >= 0.3 AND 2 < words AND words <= 9"
NESTED = "(score > 0.5 OR size < 3) AND NOT words = 4"
NO_TOP = "null"
PASSING = "{column: size, fraction: 0.5}"
COMPAT = "{column: size, fraction: 0.4, datacomp_compat: true}"
POOL = "{column: size, fraction: 0.4, over: pool}"
POOL_COMPAT = "{column: score, fraction: 0.4, over: pool, datacomp_compat: true}"
SHARE = "{{column: score, fraction: {}{}}}"
RESTS = ("", ", over: pool", ", datacomp_compat: true")
SIZE = "{{column: size, rows: {}}}"

SCORE = ("score=-0.1:0.9:0.5", "score >= 0.3", ["score >= -0.1", "score >= 0.4", "score >= 0.9"])
ABOVE = ("words>0:8:4", "2 < words", ["0 < words", "4 < words", "8 < words"])
BELOW = ("words<=0:12:6", "words <= 9", ["words <= 0", "words <= 6", "words <= 12"])
CASES = [
    *((*how, NO_TOP) for how in (SCORE, ABOVE, BELOW)),
    *((*ABOVE, top) for top in (PASSING, COMPAT, POOL, POOL_COMPAT)),
]
SELECTS = list(  # condition and `top` of each select that a test asks, or holds another against
    dict.fromkeys(
        [
            *((WHERE.replace(it, word), top) for _, it, to, top in CASES for word in (it, *to)),
            *((WHERE, SHARE.format(f, it)) for f in (0.1, 0.3, 0.4, 0.7, 1.0) for it in RESTS),
            *((WHERE, SIZE.format(rows)) for rows in (1, 20, 501, 1001)),
            *((NESTED.replace("0.5", value), NO_TOP) for value in ("0.2", "0.5", "0.6")),
            *((NESTED.replace("4", value), NO_TOP) for value in ("3", "5")),
            *((f"words {sign}", NO_TOP) for sign in (">= 5", ">= 0", "> 1")),
            ("score > 5", SHARE.format(1.0, "")),
        ]
    )
)


def run_each(folder: Path) -> None:
    """Runs all selects over a pool with ties, nulls, NaN, infinities, a float32 on every cut."""
    random = np.random.default_rng(3)
    score = np.round(random.random(ROWS), 1).astype(np.float32)
    score[::17], score[5], score[6] = NAN, np.inf, -0.0
    size = np.floor(random.random(ROWS) * 30) - 10
    host = [None if i % 50 == 0 else f"https://{'abc'[i % 3]}.test/{i}" for i in range(ROWS)]
    pool = {
        "url": host,
        "text": [f"caption {i}" for i in range(ROWS)],
        "language": [["en", "en", "de", None][i % 4] for i in range(ROWS)],
        "score": pa.array(score, mask=np.arange(ROWS) % 23 == 0),
        "words": pa.array(random.integers(0, 12, ROWS), mask=np.arange(ROWS) % 31 == 0),
        "size": pa.array(size, mask=np.arange(ROWS) % 19 == 0),
    }
    pq.write_table(pa.table(pool), folder / "pool.parquet")
    text = RECIPE.format(folder=folder)
    for number, (where, top) in enumerate(SELECTS):
        text += f'  s{number}: {{uses: select.where, from: first, where: "{where}", top: {top}}}\n'
    (folder / "recipe.yaml").write_text(text)
    plan = make_plan(load_recipe(str(folder / "recipe.yaml")))
    assert run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines()).complete


@pytest.fixture(autouse=True, params=["held", "by shard"])
def reading(request, monkeypatch):
    """Each test with all rows at hand, and as of a pool that is too large for that."""
    if request.param == "by shard":
        monkeypatch.setattr(swept, "HELD_ROWS", 0)


@dataclass
class Ran:
    """One of the selects."""

    state: RunState
    stage: str

    def sweep(self, vary: str) -> Sweep:
        return sweep(self.state, self.stage, vary)

    @cached_property
    def kept(self) -> set[int]:
        """The rows that it holds, by their number in the pool."""
        rows = stored(self.state, "pool", {"keep": (self.stage, KEEP.name)})
        table = pa.concat_tables(rows.table(i) for i in range(len(rows)))
        return set(np.flatnonzero(table["keep"].to_numpy()).tolist())


@pytest.fixture(scope="module")
def selects(artefacts) -> list[Ran]:
    state = latest(str(artefacts("swept", run_each) / "run"))
    return [Ran(state, f"s{number}") for number in range(len(SELECTS))]


@pytest.fixture
def ran(selects):
    return lambda where=WHERE, top=NO_TOP: selects[SELECTS.index((where, top))]


@pytest.fixture
def ran_alone(tmp_path, clipmill):
    """Runs stages of a test's own; the state they leave."""

    def run(stages: str) -> RunState:
        recipe = tmp_path / "alone.yaml"
        recipe.write_text(f"stages:\n{stages}")
        assert clipmill("run", recipe, "--out", tmp_path / "run", "--workers", "0").code == 0
        return RunState(make_plan(load_recipe(str(recipe))), Storage(str(tmp_path / "run")))

    return run


@cache
def number_of() -> dict[str, int]:
    urls = [None if i % 50 == 0 else f"https://{'abc'[i % 3]}.test/{i}" for i in range(ROWS)]
    return {uid_of(url, f"caption {i}").hex(): i for i, url in enumerate(urls)}


@pytest.mark.parametrize(("vary", "today", "others", "top"), CASES)
def test_a_threshold_keeps_what_a_run_with_it_keeps(vary, today, others, top, ran):
    check(ran(WHERE, top), vary, [ran(WHERE.replace(today, other), top) for other in others])


def check(it: Ran, vary: str, others: list[Ran]) -> None:
    """Every figure of a sweep against the rows that the selects kept."""
    found, today, reruns = it.sweep(vary), it.kept, [other.kept for other in others]
    assert found.kept == len(today)
    assert len(found.points) == len(reruns)
    for point, rows in zip(found.points, reruns, strict=True):
        won, lost = rows - today, today - rows
        assert (point.kept, point.common) == (len(rows), len(rows & today)), point.rule
        assert (point.won, point.lost) == (len(won), len(lost))
        for kind, there in (("won", won), ("lost", lost)):
            samples = [number_of()[s.uid] for s in getattr(point.samples, kind)]
            assert len(samples) == min(12, len(there))
            assert set(samples) <= there
        languages = [["en", "en", "de", None][i % 4] or "(none)" for i in rows]
        assert point.groups["language"] == {x: languages.count(x) for x in set(languages)}
        hosts = ["(none)" if i % 50 == 0 else f"{'abc'[i % 3]}.test" for i in rows]
        assert point.groups["domain"] == {x: hosts.count(x) for x in set(hosts)}


@pytest.mark.parametrize("rest", RESTS)
def test_a_share_keeps_what_a_run_with_it_keeps(rest, ran):
    it, values = ran(WHERE, SHARE.format(0.3, rest)), (0.1, 0.4, 0.7, 1.0)
    assert tuple(at.value for at in it.sweep("top.fraction=0.1:1:0.3").points) == values
    others = [ran(WHERE, SHARE.format(value, rest)) for value in values]
    check(it, "top.fraction=0.1:1:0.3", others)


def test_a_number_of_rows_keeps_what_a_run_with_it_keeps(ran):
    others = [ran(WHERE, SIZE.format(rows)) for rows in (1, 501, 1001)]
    check(ran(WHERE, SIZE.format(20)), "top.rows=1:1001:500", others)


def test_a_comparison_inside_or_and_not_is_varied_where_it_stands(ran):
    others = [ran(NESTED.replace("0.5", value)) for value in ("0.2", "0.6")]
    check(ran(NESTED), "score=0.2:0.6:0.4", others)
    others = [ran(NESTED.replace("4", value)) for value in ("3", "5")]
    check(ran(NESTED), "words=3:5:2", others)


def test_no_row_that_an_earlier_select_dropped_comes_back(ran):
    (point, *_) = ran("words >= 5").sweep("words=0:5:5").points
    assert ran("words >= 0").kept == ran("words > 1").kept
    assert point.kept == len(ran("words > 1").kept)


def test_no_row_without_an_image_is_won(tmp_path, ran_alone):
    (tmp_path / "pool").mkdir()
    for name, size in (("small", 10), ("fine", 50), ("too_large", 101)):
        (tmp_path / "pool" / f"{name}.png").write_bytes(b"x" * size)
        (tmp_path / "pool" / f"{name}.txt").write_text("a caption")
    state = ran_alone(
        f"  pool: {{uses: ingest.image_folder, path: {tmp_path / 'pool'}, max_image_bytes: 100}}\n"
        "  subset: {uses: select.where, from: pool, where: NOT image_bytes < 40 OR text <> ''}"
    )
    found = sweep(state, "subset", "image_bytes=0:200:100")
    assert found.kept == 2
    assert [point.kept for point in found.points] == [2, 2, 2]


def test_of_many_hosts_the_large_ones_are_told_apart_and_few_are_held(
    tmp_path, ran_alone, monkeypatch
):
    rows, held = 300, []
    host = [("a" if i % 3 else "b") if i % 5 < 4 else f"only-{i}" for i in range(rows)]
    pool = {
        "url": [f"https://{name}.test/{i}" for i, name in enumerate(host)],
        "text": ["caption"] * rows,
        "score": [float(i % 10) for i in range(rows)],
    }
    pq.write_table(pa.table(pool), tmp_path / "pool.parquet")
    state = ran_alone(
        f"  pool: {{uses: ingest.url_list, path: {tmp_path / 'pool.parquet'}, "
        "shard_rows: 30, extra: {score: float}}\n"
        "  subset: {uses: select.where, from: pool, where: score > 4}"
    )
    whole = sweep(state, "subset", "score=2:6:2")
    largest = Groups.largest
    monkeypatch.setattr(Groups, "largest", lambda rows: held.append(len(rows)) or largest(rows))
    monkeypatch.setattr(swept, "NAMES", 40)
    few = sweep(state, "subset", "score=2:6:2")
    assert max(held) <= 40 < len(set(host))
    for one, other in zip((few, *few.points), (whole, *whole.points), strict=True):
        one, other = one.groups["domain"], other.groups["domain"]
        assert {*list(one)[:3]} == {*list(other)[:3]} == {"a.test", "b.test", "(others)"}
        assert [one["a.test"], one["b.test"]] == [other["a.test"], other["b.test"]]
        assert sum(one.values()) == sum(other.values())


# What is said of it


def test_samples_are_the_same_each_time_and_carry_value_and_caption(ran):
    found = ran().sweep("score=0.1:0.5:0.2")
    assert found == ran().sweep("score=0.1:0.5:0.2")
    sample = found.points[0].samples.won[0]
    assert sample.text == f"caption {number_of()[sample.uid]}"
    assert 0.1 <= sample.value < 0.3
    assert json.loads(json.dumps(as_json(found), allow_nan=False))


def test_several_shards_are_read_at_once(ran, monkeypatch):
    it = ran(WHERE, PASSING)
    expected = it.sweep("score=0.1:0.5:0.1")
    meeting, read, begun = threading.Barrier(2), PoolShards.table, itertools.count()

    def table(shards, index):
        if next(begun) < 2:
            meeting.wait(20)
        return read(shards, index)

    monkeypatch.setattr(PoolShards, "table", table)
    assert it.sweep("score=0.1:0.5:0.1") == expected


def test_shards_of_a_large_pool_are_not_held(ran, monkeypatch):
    alive, most = [], []

    def tables(shards, index, read=PoolShards.table):
        table = read(shards, index)
        alive.append(weakref.ref(table))
        most.append(sum(ref() is not None for ref in alive))
        return table

    monkeypatch.setattr(swept, "HELD_ROWS", 0)
    monkeypatch.setattr(PoolShards, "table", tables)
    ran(WHERE, PASSING).sweep("score=0.1:0.5:0.1")
    assert len(most) > 10  # looks at each of three shards
    assert max(most) <= 1 + DISK_READERS


@pytest.mark.parametrize(
    ("top", "vary"),
    [
        (NO_TOP, "score=0.1:0.5:0.1"),
        (PASSING, "score=-0.1:0.9:0.1"),
        (POOL_COMPAT, "words>0:8:1"),
        (SHARE.format(0.3, ""), "top.fraction=0.05:1:0.15"),
        (SIZE.format(20), "top.rows=1:400:40"),
    ],
)
def test_all_that_is_said_of_a_large_pool_is_that_of_its_rows_at_once(top, vary, ran, monkeypatch):
    it = ran(WHERE, top)
    found = it.sweep(vary)
    monkeypatch.setattr(swept, "HELD_ROWS", ROWS if swept.HELD_ROWS == 0 else 0)
    monkeypatch.setattr(cut, "TOGETHER", 4)
    assert it.sweep(vary) == found


def test_an_infinite_value_is_a_word_which_json_has(ran):
    found = ran("score > 5", SHARE.format(1.0, "")).sweep("top.fraction=0.5:1:0.5")
    (sample,) = found.points[0].samples.lost  # half of one row is none
    assert (number_of()[sample.uid], sample.value) == (5, "inf")


def test_the_table_has_a_line_a_value_and_says_what_is_kept_today(ran):
    page = text(ran().sweep("score=0.1:0.5:0.2")).splitlines()
    assert f"keeps {len(ran().kept)} of 400 rows" in page[0]
    assert page[0].endswith("with score >= 0.3")
    assert [line.split()[0] for line in page[3:6]] == ["0.1", "0.3", "0.5"]
    far = text(ran().sweep("score=1000000:1000001:1")).splitlines()
    assert [line.split()[0] for line in far[3:5]] == ["1000000", "1000001"]


def test_the_page_draws_every_value_and_escapes_captions(ran):
    state = ran().state
    found = ran().sweep("score=0.1:0.5:0.2")
    first = found.points[0]
    hostile = replace(first.samples.won[0], text="<script>alert(1)</script>")
    changed = replace(first, samples=replace(first.samples, won=(hostile,)))
    found = replace(found, points=(changed, *found.points[1:]))
    page = sweep_page(state, found)
    assert page.count('<circle class="dot s1"') == 3 * 3  # three plots of three values
    assert Page(page).asks_for_nothing()
    assert "<script>alert(1)</script>" in Page(page).text
    assert page == sweep_page(state, found)


def test_groups_past_the_largest_are_counted_together():
    names = [f"g{i:02}" for i in range(GROUPS + 3) for _ in range(100 - i)] + [None] * 7
    column = pa.chunked_array([names]).dictionary_encode()
    groups = Groups.largest(rows_of_groups(column))
    counts = groups.counts(np.bincount(groups.codes(column)))
    assert list(counts)[1] == "g00"
    assert len(counts) == GROUPS + 2
    assert (counts["(others)"], counts["(none)"]) == (80 + 79 + 78, 7)
    assert len(groups.codes(column.slice(0, 0))) == 0
    assert Groups.largest(rows_of_groups(column.slice(0, 0))).counts(np.zeros(2, int)) == {}


# What is refused


@pytest.mark.parametrize(
    ("vary", "found"),
    [
        ("score", "it is not NAME=START:STOP:STEP"),
        ("score=0.1:0.4", "it is not NAME"),
        ("score=a:b:c", "three numbers"),
        ("score=0:nan:1", "finite"),
        ("score=0:1e5000:1", "30 digits"),
        ("score=1e5000:1e5000:1", "30 digits"),
        ("score=0:1:1e-999999", "30 digits"),
        ("score=0.4:0.1:0.1", "empty"),
        ("score=0.1:0.4:0", "empty"),
        ("score=0:1:0.0001", "10,001 values"),
    ],
)
def test_what_is_no_range_is_refused(vary, found):
    with pytest.raises(RecipeError, match=found):
        parse(vary)


def test_decimal_steps_do_not_drift():
    values = parse("clip_score=0.10:0.40:0.02").values
    assert [str(value) for value in values][:3] == ["0.10", "0.12", "0.14"]
    assert len(values) == 16
    assert str(values[-1]) == "0.40"


@pytest.mark.parametrize(
    ("stage", "vary", "found"),
    [
        ("subst", "score=0:1:1", "no stage 'subst'"),
        ("pool", "score=0:1:1", "which has no threshold"),
        (None, "scoer=0:1:1", "no threshold 'scoer'\n.*\n.*score, words"),
        (None, "language=0:1:1", "no threshold 'language'"),
        (None, "words=0:1:1", "compared 2 times: words > 2, words <= 9"),
        (None, "top.rows=1:5:1", "no threshold 'top.rows'\n.*\n.*top.fraction"),
        (None, "top.fraction=0.5:1.5:0.5", "fraction is 1.5"),
        (None, "top.fraction=0:1:0.5", "fraction is 0"),
        (None, "top.fraction>0.1:1:0.5", "no threshold 'top.fraction>'"),
    ],
)
def test_what_cannot_be_varied_is_refused_with_what_can(stage, vary, found, ran):
    with pytest.raises(RecipeError, match=found):
        sweep(ran(WHERE, PASSING).state, stage or ran(WHERE, PASSING).stage, vary)


def test_half_a_row_is_refused(ran):
    with pytest.raises(RecipeError, match=r"top.rows is 1\.5; it is a whole number"):
        ran(WHERE, SIZE.format(20)).sweep("top.rows=1:2:0.5")


def test_a_stage_without_top_says_what_it_has(ran):
    with pytest.raises(RecipeError, match="score, words"):
        ran().sweep("top.fraction=0.1:0.5:0.1")


def test_a_damaged_file_is_no_fault_of_the_stage(ran):
    planned = ran(WHERE, PASSING).state.plan.stages[ran(WHERE, PASSING).stage]
    (size,) = (threshold for threshold in thresholds_of(planned) if threshold.is_size)

    def parts():
        raise DamagedError("folder", "file", "its bytes have changed")

    with pytest.raises(DamagedError):
        verdicts_by_part(planned, size, [Decimal("0.5")], parts)
