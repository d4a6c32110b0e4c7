"""The picture in docs/looking.md is made by the command that its module names."""

import pytest
from PIL import Image

from tests.report_picture import WIDTH
from tests.show_picture import main

pytestmark = pytest.mark.usefixtures("own_stages")


def test_the_picture_of_rows_near_thresholds_is_small(state, tab, tmp_path):
    (stage, *_) = (name for name, it in state.plan.stages.items() if it.is_select)
    main(tab, str(state.run), stage, str(tmp_path / "show.png"))
    assert (tmp_path / "show.png").stat().st_size < 200_000
    shown = Image.open(tmp_path / "show.png")
    assert shown.width == WIDTH
    assert 300 < shown.height < 1200
