"""The picture in docs is made by the command that its page names."""

import numpy as np
import pytest
from PIL import Image

from tests.report_picture import MOST_HEIGHT, WIDTH, main

pytestmark = pytest.mark.usefixtures("own_stages")


def test_the_picture_of_a_report_is_small_and_ends_before_pictures_begin(state, tab, tmp_path):
    main(tab, str(state.run), str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").stat().st_size < 200_000
    shown = Image.open(tmp_path / "report.png")
    assert shown.width == WIDTH
    assert 300 < shown.height <= MOST_HEIGHT


def test_the_picture_of_a_concept_map_has_all_of_it(clustered, own_stages, tab, tmp_path):
    main(tab, str(clustered.run), str(tmp_path / "map.png"), "clusters")
    assert (tmp_path / "map.png").stat().st_size < 200_000
    shown = Image.open(tmp_path / "map.png").convert("RGB")
    assert shown.width == WIDTH
    colours = {colour for _, colour in shown.getcolors(1 << 20)}
    for shade in ((253, 231, 37), (144, 215, 67)):  # of the scale, and of nothing else on a page
        assert min(max(abs(np.subtract(colour, shade))) for colour in colours) < 60
