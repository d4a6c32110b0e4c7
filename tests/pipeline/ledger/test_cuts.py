"""The rows at each threshold: counted beyond it, and the nearest on either side by their value."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.ledger.rows.stored import rows_at, stored
from clipmill.pipeline.ledger.selection.scores import ScoreColumn, ScoreCut, edges_of
from clipmill.pipeline.ledger.selection.survey import NEAREST, CutRows, survey


@pytest.fixture(scope="module")
def cuts(state) -> dict[str, CutRows]:
    return {of.column: of for of in survey(state, "subset").cuts}


@pytest.fixture(scope="module")
def rows(state) -> list[dict]:
    bound = {
        "words": ("caption", "caption_words"),
        "side": ("look", "min_side"),
        "aspect": ("look", "aspect_ratio"),
        "luma": ("look", "luma_std"),
        "keep": ("subset", "keep"),
        "reason": ("subset", "reason"),
    }
    shards = stored(state, "pool", bound)
    return [row for i in range(len(shards)) for row in shards.table(i).to_pylist()]


def test_rows_beyond_a_threshold_are_counted_and_those_beyond_no_other(cuts, rows):
    lowest = cuts["luma_std"].cut.limit
    beyond = {
        "caption_words": lambda row: row["words"] < 2,
        "min_side": lambda row: row["side"] is not None and row["side"] < 30,
        "aspect_ratio": lambda row: row["aspect"] is not None and row["aspect"] > 3,
        "luma_std": lambda row: row["luma"] is not None and row["luma"] < lowest,
    }
    assert cuts.keys() == beyond.keys()
    for column, is_beyond in beyond.items():
        others = [other for name, other in beyond.items() if name != column]
        gone = [row for row in rows if is_beyond(row)]
        alone = [row for row in gone if not any(other(row) for other in others)]
        assert (cuts[column].beyond, cuts[column].alone) == (len(gone), len(alone)), column
    assert cuts["min_side"].beyond > 0


def test_the_nearest_rows_on_both_sides_are_shown_by_their_value(cuts, rows, state):
    at = cuts["luma_std"]
    kept = sorted(row["luma"] for row in rows if row["keep"])[:NEAREST]
    assert [value for _, value in at.kept] == pytest.approx(kept)
    gone = sorted(row["luma"] for row in rows if row["reason"] == "top:luma_std")[-NEAREST:]
    assert len(gone) > 1
    assert [value for _, value in at.dropped] == pytest.approx(gone)
    read = rows_at(state, {"v": ("look", "luma_std")}, [place for place, _ in at.kept])
    assert [row["v"] for row in read] == pytest.approx(kept)


def test_a_row_that_went_for_another_rule_is_not_at_the_threshold(cuts, rows):
    small = [row for row in rows if row["reason"] == "min_side >= 30"]
    assert [value for _, value in cuts["min_side"].dropped] == [20.0] * min(NEAREST, len(small))
    wide = sum(row["reason"] == "aspect_ratio <= 3" for row in rows)
    assert len(cuts["aspect_ratio"].dropped) == min(NEAREST, wide)
    assert np.all(np.diff([value for _, value in cuts["aspect_ratio"].kept]) >= 0)


def test_a_value_without_an_end_is_beyond_a_threshold_as_for_where():
    cut = ScoreCut(text="a >= 1", value=1, stage="last", sign=">=", limit=1)
    value = pa.chunked_array([pa.array([-np.inf, np.inf, np.nan, None, 0.5, 1])])
    assert cut.beyond(value).tolist() == [True, False, False, False, True, False]


@pytest.mark.parametrize("value", [0.0, 7.0, 2.0**62, -(2.0**62), 1e300])
def test_equal_values_of_any_size_have_bins_of_some_width(value):
    for is_whole in (False, True):
        column = ScoreColumn("id", ("pool", "id"), is_whole)
        assert np.all(np.diff(edges_of(column, [np.full(3, value)])) > 0)
