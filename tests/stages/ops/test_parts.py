"""Parts of files: their frames against Pillow's count, and too many of them."""

import pytest
from PIL import Image

from clipmill.stages.ops.images.encoded import frames_of
from clipmill.stages.ops.images.opened import MOST, parts_of
from tests.hostile_pictures import apng, chunk, commented, noise, png_with, saved, segmented, tiff

COLOURS = [Image.new("RGB", (9, 7), name) for name in ("red", "green", "blue", "gold", "teal")]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gif", {}),
        ("gif", {"comment": b"x" * 600, "interlace": 0}),
        ("gif", {"optimize": True, "transparency": 0}),
        ("png", {}),
        ("png", {"default_image": True}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("jpeg", {"progressive": True}),
        ("bmp", {}),
    ],
)
def test_frames_are_those_that_pillow_counts(name, options, count, tmp_path):
    many = {} if name in ("jpeg", "bmp") else {"save_all": True, "append_images": COLOURS[1:count]}
    path = tmp_path / name
    path.write_bytes(saved(COLOURS[0], name, **many, **options))
    with Image.open(path) as image:
        there = getattr(image, "n_frames", 1)
    assert frames_of(parts_of(name, path.read_bytes())) == there


def test_a_tiff_is_read_in_its_order_of_bytes():
    deep = Image.new("I;16B", (9, 7))
    body = saved(deep, "tiff", save_all=True, append_images=[deep])
    assert body[:2] == b"MM"
    assert frames_of(parts_of("tiff", body)) == 2


def test_frames_are_what_a_file_holds_whatever_it_says():
    assert [frames_of(parts_of("png", apng(n))) for n in (1, 2, 7, 2**31)] == [2, 2, 2, 2]


@pytest.mark.parametrize(("options", "count"), [({}, 1), ({"progressive": True}, 10)])
def test_scans_of_a_jpeg_are_counted_but_not_those_of_its_thumbnail(options, count):
    thumbnail = saved(noise(), "jpeg", progressive=True)
    body = saved(noise(), "jpeg", exif=b"Exif\0\0" + thumbnail, **options)
    assert parts_of("jpeg", body + thumbnail).scans == count


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("jpeg", segmented),
        ("png", lambda count: png_with(chunk(b"aaAa") * count)),
        ("gif", commented),
        ("tiff", lambda count: tiff(directories=count)),
        ("tiff", lambda count: tiff((273, 4, count, 0))),
    ],
    ids=["segments", "chunks", "comments", "directories", "strips"],
)
def test_a_file_of_more_parts_than_any_picture_has_is_not_read(name, make):
    assert parts_of(name, make(MOST[name] // 2)).kinds
    assert parts_of(name, make(MOST[name] + 1)) is None


def test_directories_that_lead_back_are_counted_once():
    body = tiff(directories=3)
    last = body.rindex(bytes(4))
    assert frames_of(parts_of("tiff", body[:last] + b"\x08\0\0\0")) == 3


@pytest.mark.parametrize("name", MOST)
def test_parts_of_a_file_that_breaks_off_are_those_before(name):
    whole = saved(COLOURS[0], name)
    for size in range(8, len(whole)):
        assert len(parts_of(name, whole[:size]).kinds) <= len(parts_of(name, whole).kinds)


def test_what_follows_a_pngs_end_is_no_part():
    body = saved(COLOURS[0], "png")
    assert parts_of("png", body + bytes(2_000_000)).kinds == parts_of("png", body).kinds
