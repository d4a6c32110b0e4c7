"""What is surveyed of a select stage, against the rows of the drawn pool."""

import numpy as np
import pytest

from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.rows import ahead
from clipmill.pipeline.ledger.rows.stored import SHOWN, least, rows_at, stored
from clipmill.pipeline.ledger.selection import survey as of_survey
from clipmill.pipeline.ledger.selection.causes import KEPT
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.survey import survey
from clipmill.pipeline.run_folder.live import live_stage
from tests.drawn import ROWS


@pytest.fixture(scope="module")
def found(state):
    return survey(state, "subset")


def scores(found) -> dict:
    return {score.name: score for score in found.scores}


def test_every_row_is_in_a_bin_or_without_a_value(found):
    for score in found.scores:
        assert sum(score.kept) + sum(score.dropped) + score.undefined == ROWS, score.name
    assert scores(found)["caption_words"].undefined == 0
    assert scores(found)["min_side"].undefined > 0  # outside the mask, or broken


def test_kept_rows_are_the_subsets(found, state):
    kept = live_stage(state, "subset").reasons[""]
    assert {sum(score.kept) for score in found.scores} == {kept}


def test_cuts_are_the_conditions_those_of_earlier_selects_and_of_top(found, state):
    cuts = {name: [cut.text for cut in score.cuts] for name, score in scores(found).items()}
    assert cuts["min_side"] == ["min_side >= 30"]
    assert cuts["aspect_ratio"] == ["aspect_ratio <= 3"]
    assert cuts["caption_words"] == ["caption_words >= 2"]
    (cut,) = scores(found)["luma_std"].cuts
    table = stored(state, "pool", {"v": ("look", "luma_std"), "keep": ("subset", "keep")})
    rows = [row for i in range(len(table)) for row in table.table(i).to_pylist()]
    assert cut.value == min(row["v"] for row in rows if row["keep"])
    assert cut.text.startswith("top.fraction = 0.8: from ")


def test_a_cut_between_whole_numbers_stands_between_their_bins(found):
    assert [cut.value for cut in scores(found)["caption_words"].cuts] == [1.5]


def test_samples_stand_under_the_cause_that_the_funnel_counts_them_under(found, state):
    (end,) = funnel(state).ends
    causes = {(c.stage, c.reason): c.rows for c in end.causes} | {KEPT: end.kept}
    assert {at: len(few) for at, few in found.samples.items()} == {
        at: min(rows, SHOWN) for at, rows in causes.items()
    }
    short = found.samples["worth", "caption_words >= 2"]
    assert [values for _, values in short] == [{"caption_words": 1}] * len(short)
    captions = rows_at(state, {"text": ("pool", "text")}, [place for place, _ in short])
    assert captions == [{"text": "word"}] * len(short)
    small = found.samples["subset", "min_side >= 30"]
    assert all(values == {"min_side": 20} for _, values in small)


def test_the_few_are_those_with_the_least_hashes():
    bits = np.random.default_rng(0).permutation(100).astype(np.uint64)
    rows = np.arange(100) % 2 == 0
    assert bits[least(bits, rows)].tolist() == sorted(bits[rows].tolist())[:SHOWN]
    assert least(bits, np.zeros(100, bool)).tolist() == []


def test_chosen_rows_are_read_as_all_rows_are_in_any_order(state):
    bound = {"text": ("pool", "text"), "side": ("look", "min_side"), "uid": ("pool", "uid")}
    shards = stored(state, "pool", bound)
    places = [(1, 24), (0, 3), (2, 0), (0, 3), (0, 20)]
    tables = [shards.table(i).to_pylist() for i in range(len(shards))]
    known = [{name: tables[shard][at][name] for name in bound} for shard, at in places]
    assert rows_at(state, bound, places) == known
    assert known[4]["side"] is None  # row 20 has one word: outside the mask of `look`
    assert rows_at(state, {}, places) == [{}] * 5
    assert rows_at(state, bound, []) == []


@pytest.mark.slow("two processes start")
@pytest.mark.usefixtures("own_stages")  # which workers import
def test_it_is_the_same_whoever_counts_and_however_many_shards_at_a_time(found, state, monkeypatch):
    monkeypatch.setattr(ahead, "PART", 1)
    apart = survey(state, "subset")
    asked, stream = [], LocalExecutor.stream

    def counted(executor, steps, items):
        asked.append(executor.workers)
        return stream(executor, steps, items)

    monkeypatch.setattr(LocalExecutor, "stream", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(of_survey, "WORTH", 1)
    assert survey(state, "subset") == apart
    assert len(asked) == 1
    assert (apart.cuts, apart.groups, apart.samples) == (found.cuts, found.groups, found.samples)
    for one, other in zip(apart.scores, found.scores, strict=True):
        assert (one.kept, one.dropped, one.undefined) == (
            other.kept,
            other.dropped,
            other.undefined,
        )
        assert (one.mean, one.kept_mean) == pytest.approx((other.mean, other.kept_mean))
    ours, theirs = apart.relations, found.relations
    assert (ours.rules, ours.broken, ours.spreads, ours.by) == (
        theirs.rules,
        theirs.broken,
        theirs.spreads,
        theirs.by,
    )
    r = {(pair.a, pair.b): (pair.r, pair.rows) for pair in theirs.pairs}
    assert {(pair.a, pair.b): pytest.approx((pair.r, pair.rows)) for pair in ours.pairs} == r
