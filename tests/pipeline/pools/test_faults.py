import io
import zlib
from itertools import product

import fontpkg
import numpy as np
import pytest
from PIL import Image, ImageFont

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Drawing
from clipmill.pipeline.pools.faults import (
    NEAR_OPS,
    OVERLAYS,
    PHRASES,
    behaviour,
    bomb,
    faulty_file,
    near_copy,
    served_file,
)
from clipmill.pipeline.pools.picture import draw_svg, encode, extension, on_background, size_px

CHANCE = Chance(0, "source", "key")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="4" fill="red"/></svg>'
DRAWING = Drawing("source", "key", "circle", "shape", {}, SVG)


@pytest.fixture(scope="module")
def clean():
    return Image.linear_gradient("L").convert("RGB").resize((160, 120))


def test_a_bomb_is_small_on_disk_and_unpacks_to_just_what_its_header_says():
    file = bomb()
    assert len(file) < 150_000
    assert size_px(file) == (30_000, 30_000)
    start = file.index(b"IDAT") + 4
    unpack, unpacked_bytes, rest = zlib.decompressobj(), 0, file[start:]
    while rest and not unpack.eof:
        unpacked_bytes += len(unpack.decompress(rest, 1 << 24))
        rest = unpack.unconsumed_tail
    assert unpacked_bytes == 30_000 * (1 + 3_750)
    assert unpack.eof  # the checksum was right


@pytest.mark.parametrize(
    ("issue", "holds"),
    [
        ("tiny", lambda width, height: 2 <= max(width, height) <= 15),
        ("aspect", lambda width, height: max(width, height) >= 8 * min(width, height)),
        ("placeholder", lambda width, height: min(width, height) >= 100),
        ("text_only", lambda width, height: width >= 180),
        ("drawn_text", lambda width, height: (width, height) == (160, 120)),
        ("watermark", lambda width, height: (width, height) == (160, 120)),
    ],
)
def test_a_picture_with_an_issue_decodes_and_has_the_size_of_it(issue, holds, clean):
    file = faulty_file(issue, clean, "a red fox", CHANCE)
    with Image.open(io.BytesIO(file)) as picture:
        picture.load()
        assert holds(*picture.size)


def test_words_and_marks_are_drawn_at_other_places_and_leave_most_of_the_picture(clean):
    before_HW3 = np.asarray(clean).astype(int)
    changed = {}
    for issue, key in product(OVERLAYS, "abc"):
        file = faulty_file(issue, clean, "a red fox", Chance(0, "source", key))
        with Image.open(io.BytesIO(file)) as picture:
            changed[issue, key] = abs(np.asarray(picture) - before_HW3).max(axis=2) > 32
        assert 0.01 < changed[issue, key].mean() < 0.5
    assert len({mask_HW.tobytes() for mask_HW in changed.values()}) == len(changed)


def test_the_font_has_every_letter_of_the_words_that_are_drawn():
    font = ImageFont.truetype(fontpkg.path("Noto Sans"))
    missing = bytes(font.getmask("\uffff"))
    letters = {letter for phrases in PHRASES.values() for letter in "".join(phrases)}
    assert len(letters) > 60
    assert not [letter for letter in letters if bytes(font.getmask(letter)) == missing]


def test_an_oversized_picture_has_26_megabytes(clean):
    assert 26e6 < len(faulty_file("oversized", clean, "", CHANCE)) < 27e6


@pytest.mark.parametrize("how", NEAR_OPS)
def test_a_near_copy_is_another_picture_of_about_the_same_size(how, clean):
    file = near_copy(clean, how, "a red fox", CHANCE)
    with Image.open(io.BytesIO(file)) as picture:
        picture.load()
        assert picture.tobytes() != clean.tobytes()
        assert 0.4 < picture.width / clean.width < 1.3


@pytest.mark.parametrize("issue", ["html", "truncated", "corrupt", "changed", "svg"])
def test_a_changed_file_differs_from_the_crawled_one(issue, clean):
    file = encode(clean, "jpeg", "#ffffff", 90)
    served = served_file(issue, file, DRAWING, CHANCE)
    assert served != file
    assert len(served) < len(file) or issue != "truncated"


def test_a_harmless_fault_leaves_the_file_alone():
    for issue in (None, "redirect", "slow", "wrong_content_type", "503_once"):
        assert served_file(issue, b"file", DRAWING, CHANCE) == b"file"


def test_a_redirect_loop_comes_back_to_where_it_started():
    acts = behaviour("redirect_loop", "s00/a.png", CHANCE)
    path = "s00/a.png"
    for _ in range(2):
        path = acts[path]["redirect"].lstrip("/")
    assert path == "s00/a.png"


@pytest.mark.parametrize(
    ("how", "suffix", "mode"),
    [
        ("jpeg", "jpg", "RGB"),
        ("progressive", "jpg", "RGB"),
        ("cmyk", "jpg", "CMYK"),
        ("png", "png", "RGBA"),
        ("grey_alpha", "png", "LA"),
        ("webp", "webp", "RGB"),
        ("gif", "gif", "P"),
    ],
)
def test_each_format_is_what_it_says(how, suffix, mode):
    file = encode(draw_svg(SVG.decode(), 60), how, "#ffffff", 85)
    assert extension(file) == suffix
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.mode == mode


def test_a_rotated_file_shows_upright_once_its_tag_is_obeyed():
    tall = Image.new("RGBA", (20, 60), "#123456")
    with Image.open(io.BytesIO(encode(tall, "rotated", "#ffffff", 85))) as picture:
        assert picture.size == (60, 20)
        assert picture.getexif()[0x0112] == 6


def test_dark_drawings_stay_visible_because_the_ground_is_white():
    assert on_background(Image.new("RGBA", (1, 1), "#00000000")).getpixel((0, 0)) == (255,) * 3


def test_a_broken_vector_is_a_value_error():
    with pytest.raises(ValueError, match="root"):
        draw_svg("<svg", 60)
