"""The picture in docs is made by the command that its page names."""

from PIL import Image

from tests.report_picture import MOST_HEIGHT, WIDTH, main


def test_the_picture_of_a_report_is_small_and_ends_before_pictures_begin(state, tmp_path):
    main(str(state.run), str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").stat().st_size < 200_000
    shown = Image.open(tmp_path / "report.png")
    assert shown.width == WIDTH
    assert 300 < shown.height <= MOST_HEIGHT
