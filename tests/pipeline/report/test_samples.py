"""What a page shows of a row: its picture and its caption, those of the row and no other."""

from clipmill.pipeline.ledger.selection.scores import ScoreCut
from clipmill.pipeline.ledger.selection.survey import CutRows
from clipmill.pipeline.report.ends import BARELY, barely_kept
from clipmill.pipeline.report.samples import samples_at
from tests import drawn


def test_a_sample_has_the_picture_and_the_caption_of_its_row(state):
    seen = samples_at(state, "subset", [(1, 8), (0, 3), (0, 6)])  # rows 33, 3 and 6
    assert [sample["text"] for sample in seen.values()] == [drawn.caption(i) for i in (3, 6, 33)]
    small, broken, whole = (sample["picture"] for sample in seen.values())
    assert (small["width"], small["height"]) == (20, 20)
    assert broken is None
    assert (whole["width"], whole["height"]) == (80, 64)


def cut_rows(sign: str, limit: float, *kept: tuple[int, float]) -> CutRows:
    """A rule `x SIGN limit` with the nearest rows that it kept, by value."""
    rule = ScoreCut(text=f"x {sign} {limit:g}", value=limit, stage="s", sign=sign, limit=limit)
    rows = tuple(((0, row), value) for row, value in kept)
    return CutRows(column="x", cut=rule, beyond=9, alone=9, kept=rows, dropped=())


def test_rows_that_are_barely_kept_come_from_each_rule_in_turn_and_nearest_first():
    cuts = [
        cut_rows(">=", 3, (1, 3), (2, 4), (3, 5)),
        cut_rows("<", 0.5, (4, 0), (1, 0.3), (5, 0.4)),
        cut_rows("=", 0, (6, 0)),
        cut_rows(">=", 7, (1, 7.5), (7, 8)),
    ]
    assert [
        (place[1], values["rule"], values["value"]) for place, values in barely_kept(cuts).items()
    ] == [
        (1, "x >= 7", 7.5),
        (5, "x < 0.5", 0.4),
        (7, "x >= 7", 8),
        (2, "x >= 3", 4),
        (3, "x >= 3", 5),
    ]
    assert len(barely_kept([cut_rows(">=", 0, *((row, row) for row in range(30)))])) == BARELY


def test_the_page_shows_rows_that_are_barely_kept(html):
    assert "Kept, nearest to a threshold" in html
