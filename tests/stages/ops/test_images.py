"""Headers, pixels and failures of encoded images, each format and each oddity made by Pillow."""

import contextlib
import io
import platform
import subprocess
import sys
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipmill.stages.ops.images import decode as images
from clipmill.stages.ops.images import opened
from clipmill.stages.ops.images.decode import decode
from clipmill.stages.ops.images.encoded import probe
from clipmill.stages.ops.images.opened import ImageError
from tests.hostile_pictures import apng, commented, in_runs, scanned, segmented, tiff

FORMATS = ["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"]


def noise(height: int, width: int) -> Image.Image:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(rgb)


def smooth(width: int, height: int) -> Image.Image:
    """Soft colours, with a little noise."""
    small = noise(5, 7).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.asarray(small) ^ np.asarray(noise(height, width)) % 8)


def encoded(image: Image.Image, name: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def one_pixel(mode: str, value, name: str = "png", **options) -> list[int]:
    """What a picture of one colour decodes to."""
    rgb = decode(encoded(Image.new(mode, (4, 3), value), name, **options))
    assert rgb.shape == (3, 4, 3)
    assert (rgb == rgb[0, 0]).all()
    return rgb[0, 0].tolist()


def failure(body: bytes, **options) -> str:
    with pytest.raises(ImageError) as caught:
        decode(body, **options)
    return caught.value.code


@pytest.mark.parametrize("name", FORMATS)
def test_header_tells_format_and_sides(name):
    header = probe(encoded(noise(48, 64), name))
    assert (header.format, header.width, header.height, header.frames) == (name, 64, 48, 1)


@pytest.mark.parametrize("name", ["gif", "png", "webp", "tiff"])
def test_an_animation_has_frames_and_decodes_to_its_first(name):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    body = encoded(red, name, save_all=True, append_images=[blue, red])
    assert probe(body).frames == 3
    assert not probe(body).is_plain
    assert np.abs(decode(body).astype(int) - [255, 0, 0]).max() <= 2  # WebP is lossy


@pytest.mark.parametrize(
    ("image", "plain"),
    [
        (Image.new("RGB", (4, 4)), True),
        (Image.new("L", (4, 4)), True),
        (Image.new("RGBA", (4, 4)), False),
        (Image.new("P", (4, 4)), False),
        (Image.new("I;16", (4, 4)), False),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_only_grey_and_rgb_are_plain(image, plain):
    assert probe(encoded(image, "png")).is_plain == plain


def test_a_bomb_is_measured_but_never_decoded():
    body = encoded(Image.new("1", (10_000, 9_000)), "png", compress_level=1)  # just too large
    assert probe(body).width == 10_000
    assert failure(body) == "too_many_pixels"
    assert decode(encoded(noise(10, 10), "png"), max_pixels=100).shape == (10, 10, 3)
    assert failure(encoded(noise(10, 10), "png"), max_pixels=99) == "too_many_pixels"


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_a_large_picture_for_which_memory_lacks_is_lost_alone(name, monkeypatch):
    def taking(*_) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_of_jpeg", taking)
    monkeypatch.setattr(opened.ImageFile.ImageFile, "load", taking)
    monkeypatch.setattr(opened.PngImagePlugin.PngImageFile, "load", taking)
    body = encoded(noise(10, 10), name)
    with pytest.raises(MemoryError):
        decode(body)
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    assert failure(body) == "too_many_pixels"


def test_a_tile_counts_though_the_picture_is_small():
    tile = (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 0), (325, 4, 1, 1), (259, 3, 1, 8)
    assert failure(tiff(*tile)) == "too_many_pixels"


@pytest.mark.parametrize(
    "body",
    [scanned(1500, 900), scanned(16, 2000), segmented(1001), commented(100_001), in_runs(9000)],
    ids=["scans over many pixels", "scans over few", "segments", "comments", "runs"],
)
def test_what_would_take_hours_is_too_costly_before_a_pixel_is_decoded(body):
    assert failure(body) == "too_costly"


def test_the_most_pixels_may_have_an_ordinary_number_of_scans(monkeypatch):
    side = 64
    monkeypatch.setattr(opened, "MAX_PIXELS", side**2 // 2)  # the recipe's own limit is larger
    assert decode(scanned(side, 10), max_pixels=side**2).shape == (side, side, 3)
    assert failure(scanned(side, 11), max_pixels=side**2) == "too_costly"


@pytest.mark.parametrize(("more", "is_read"), [(0, True), (5, True), (15, False)])
def test_a_jpeg_inside_a_tiff_has_no_more_scans_either(more, is_read):
    strip = scanned(64, more)
    sides = (256, 4, 1, 64), (257, 4, 1, 64), (277, 3, 1, 3), (278, 4, 1, 64)
    head = tiff(*sides, (259, 3, 1, 7), (262, 3, 1, 6), (273, 4, 1, 200), (279, 4, 1, len(strip)))
    body = head.ljust(200, b"\0") + strip
    if is_read:
        assert decode(body).shape == (64, 64, 3)
    else:
        assert failure(body) == "undecodable"


def test_an_animation_that_lies_has_the_frames_that_are_there():
    assert probe(apng(2**31)).frames == 2
    assert decode(apng(2**31)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 7, [7, 7, 7]),
        ("LA", (0, 0), [255, 255, 255]),
        ("LA", (0, 255), [0, 0, 0]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (255, 0, 0, 51), [255, 204, 204]),
        ("I;16", 0x12FF, [0x12, 0x12, 0x12]),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode, value, rgb):
    assert one_pixel(mode, value) == rgb


def test_the_transparent_colour_of_a_palette_grey_or_rgb_image_is_white():
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encoded(palette, "png"))[0, 0].tolist() == [9, 9, 9]
    assert decode(encoded(palette, "png", transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert decode(encoded(palette, "gif", transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert one_pixel("L", 7, transparency=7) == [255, 255, 255]
    assert one_pixel("RGB", (1, 2, 3), transparency=(1, 2, 3)) == [255, 255, 255]


def test_compositing_rounds_as_real_numbers_do():
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.stack([value, value, value, alpha], axis=2)
    exact = np.rint(value * (alpha / 255) + 255 - alpha.astype(float))
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(rgba), "png"))[:, :, 0], exact)


JPEGS = {
    "RGB": [{}, *({"subsampling": s} for s in (0, 1, 2, "4:1:1")), {"keep_rgb": True}],
    "L": [{}],
    "CMYK": [{}, {"subsampling": 2}],
    "YCbCr": [{}],
}


@pytest.mark.parametrize("mode", JPEGS)
def test_a_jpeg_of_any_kind_has_the_pixels_that_pillow_gives(mode):
    sizes, qualities, others = ((1, 1), (7, 33), (240, 161)), (5, 75, 100), ({}, {"progressive": 1})
    for size, quality, kind, more in product(sizes, qualities, JPEGS[mode], others):
        image = smooth(*size).convert(mode)
        body = encoded(image, "jpeg", quality=quality, restart_marker_blocks=3, **kind, **more)
        theirs = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
        np.testing.assert_array_equal(decode(body), theirs)


def test_a_damaged_jpeg_has_the_pixels_that_pillow_gives_or_none():
    generator, decoded = np.random.default_rng(0), 0
    for options in ({}, {"progressive": True}, {"optimize": True}):
        whole = np.frombuffer(encoded(smooth(160, 120), "jpeg", **options), np.uint8)
        for cut in generator.integers(len(whole) // 2, 2 * len(whole), 60):
            body = whole.copy()
            body[generator.integers(len(body) // 4, len(body), 3)] = generator.integers(0, 256, 3)
            body = body[:cut].tobytes()
            try:
                theirs = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
            except OSError:
                assert failure(body) in ("truncated", "undecodable")
            else:
                np.testing.assert_array_equal(decode(body), theirs)
                decoded += 1
    assert decoded > 30


def test_a_jpeg_that_goes_on_after_its_last_scan_is_undecodable_as_for_pillow():
    body = encoded(smooth(40, 30), "jpeg")
    scan = body[body.rindex(b"\xff\xda") : -2]
    for more in (scan, b"\xff\xb9", b"\xff\xd8"):
        with pytest.raises(OSError, match="broken data stream"):
            Image.open(io.BytesIO(body[:-2] + more + body[-2:])).load()
        assert failure(body[:-2] + more + body[-2:]) == "undecodable"


@pytest.mark.parametrize(("turn", "sides"), [(1, (333, 250)), (6, (336, 256))])
def test_a_jpeg_decodes_smaller_from_its_low_frequencies(turn, sides):
    exif = Image.Exif()
    exif[0x0112] = turn
    body = encoded(smooth(*sides), "jpeg", exif=exif, quality=95)
    whole = decode(body)
    for shrink in (2, 4, 8):
        small = decode(body, shrink=shrink)
        height, width = (round(side / shrink) for side in whole.shape[:2])
        assert small.shape == (height, width, 3)
        cell = small[5, 7].astype(int)  # the mean of what it stands for, nearly
        mean = whole[5 * shrink : 6 * shrink, 7 * shrink : 8 * shrink].mean(axis=(0, 1))
        assert np.abs(cell - mean).max() < 6


def test_what_is_no_jpeg_in_grey_or_colour_decodes_in_full():
    assert decode(encoded(noise(16, 8), "png"), shrink=4).shape == (16, 8, 3)
    assert decode(encoded(noise(16, 8).convert("CMYK"), "jpeg"), shrink=4).shape == (16, 8, 3)


glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")


def run_alone(program: str, *arguments) -> str:
    """What a process of its own prints, on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@glibc_only
def test_decoding_again_asks_the_system_for_no_memory(tmp_path):
    (tmp_path / "it.jpg").write_bytes(encoded(smooth(800, 600), "jpeg"))
    (tmp_path / "it.png").write_bytes(encoded(smooth(800, 600), "png", compress_level=1))
    program = (
        "import pathlib, resource, sys\n"
        "from clipmill.stages.ops.images.decode import decode\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    for again in range(9):\n"
        "        if again == 3: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "        decode(path.read_bytes())\n"
        "    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 6)\n"
    )
    assert all(int(faults) < 100 for faults in run_alone(program, tmp_path).split())


@glibc_only
def test_the_libraries_of_decoders_say_nothing_on_the_terminal(tmp_path):
    jpeg = encoded(smooth(160, 120), "jpeg")
    told = {
        "cut.jpg": jpeg[: len(jpeg) // 2] + b"\xff\xd9",
        "damaged.jpg": jpeg[:3000] + bytes(40) + jpeg[3000:],
        "tile.tiff": tiff(
            (322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 1, 0), (325, 4, 1, 1), (259, 3, 1, 8)
        ),
        "samples.tiff": tiff((277, 3, 1, 999)),
        "animated.png": apng(0),
        "text.png": encoded(noise(9, 9), "png", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\xff"),
    }
    for name, body in told.items():
        (tmp_path / name).write_bytes(body)
    program = (
        "import ctypes, pathlib, sys\n"
        "from clipmill.stages.ops.images import decode as images, encoded as coded, opened\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: coded.probe(path.read_bytes()), images.decode(path.read_bytes())\n"
        "    except opened.ImageError: pass\n"
        "print('our own', file=sys.stderr)\n"
        "ctypes.CDLL(None).perror(b'and C after it')\n"
    )
    ours, after = run_alone(program, tmp_path).splitlines()
    assert ours == "our own"
    assert after.startswith("and C after it")


def test_cmyk_jpeg_is_shown_as_it_was_meant():
    no_cyan_no_black = (0, 255, 255, 0)  # written inverted, as Adobe does
    assert one_pixel("CMYK", no_cyan_no_black, "jpeg", quality=100) == [255, 0, 0]


def test_floating_point_has_no_agreed_range():
    assert failure(encoded(Image.new("F", (4, 4)), "tiff")) == "undecodable"


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_to_pixels_and_sides(name, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if name == "webp" else {}
    body = encoded(noise(5, 9), name, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB"))
    np.testing.assert_array_equal(decode(body), upright)
    header = probe(body)
    assert (header.height, header.width) == upright.shape[:2]


def test_broken_exif_is_no_broken_image():
    body = encoded(noise(5, 9), "jpeg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(body).shape == (5, 9, 3)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\n<html>", b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"\0\0\0\x18ftypheic"),
        *(encoded(Image.new("RGB", (4, 3)), name) for name in ("ico", "ppm", "eps", "pdf", "tga")),
        encoded(Image.new("RGB", (4, 3)), "tiff", big_tiff=True),
    ],
    ids=["nothing", "html", "svg", "heic", "ico", "ppm", "eps", "pdf", "tga", "bigtiff"],
)
def test_what_begins_like_no_known_format_is_not_an_image(body):
    assert failure(body) == "not_an_image"


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "webp", "bmp"])
def test_a_file_cut_short_is_truncated(name, part):
    body = encoded(noise(64, 64), name)
    assert failure(body[: int(len(body) * part)]) == "truncated"


@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"])
def test_a_whole_file_with_a_ruined_head_is_undecodable(name):
    body = encoded(noise(64, 64), name)
    keep = 16 if name in ("webp", "avif") else 8
    assert failure(body[:keep] + b"\xa5" * 40 + body[keep + 40 :]) == "undecodable"


def test_an_image_without_area_is_undecodable():
    body = bytearray(encoded(noise(4, 4), "png"))
    body[16:20] = bytes(4)  # its width, under a checksum of its own
    body[29:33] = zlib.crc32(body[12:29]).to_bytes(4, "big")
    assert failure(bytes(body)) == "undecodable"


def test_random_damage_never_raises_anything_else():
    generator = np.random.default_rng(0)
    for name in FORMATS:
        whole = np.frombuffer(encoded(noise(24, 24), name), np.uint8)
        for _ in range(40):
            body = whole.copy()
            at = generator.integers(0, len(body), 6)
            body[at] = generator.integers(0, 256, 6)
            with contextlib.suppress(ImageError):  # any other error fails the test
                probe(body.tobytes())
                assert decode(body.tobytes(), max_pixels=10_000).dtype == np.uint8
