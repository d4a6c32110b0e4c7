"""What a page shows of a row: its picture and its caption, those of the row and no other."""

from clipmill.pipeline.report.samples import samples_at
from tests import drawn


def test_a_sample_has_the_picture_and_the_caption_of_its_row(state):
    seen = samples_at(state, "subset", [(1, 8), (0, 3), (0, 6)])  # rows 33, 3 and 6
    assert [sample["text"] for sample in seen.values()] == [drawn.caption(i) for i in (3, 6, 33)]
    small, broken, whole = (sample["picture"] for sample in seen.values())
    assert (small["width"], small["height"]) == (20, 20)
    assert broken is None
    assert (whole["width"], whole["height"]) == (80, 64)
