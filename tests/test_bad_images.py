"""What odd and hostile images get: pixels, or a null with a reason; never a failed neighbour."""

import io
import json
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.pools.faults import bomb
from clipmill.pipeline.progress import Lines
from tests.every_stage import Finished
from tests.hostile_pictures import apng, chunk, commented, png_with, saved, scanned, segmented, tiff

RECIPE = """
stages:
  pool:   {uses: INGEST, path: none}
  look:   {uses: annotate.image, from: pool}
  emb:    {uses: embed.clip, from: pool, model: reference}
  subset: {uses: select.where, from: [look, emb], where: min_side >= 1}
  shards: {uses: export.parquet, from: subset}
  uids:   {uses: export.uid_list, from: subset}
"""


def picture(mode: str = "RGB", width: int = 40, height: int = 30) -> Image.Image:
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(rgb).convert(mode)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def sixteen_bit() -> bytes:
    grey = np.linspace(0, 65_535, 1200).reshape(30, 40).astype(np.uint16)
    return saved(Image.fromarray(grey), "png")


frames = [picture(), picture("L").convert("RGB")]
GOOD = {  # what is seen: format, frames, shorter side
    "plain.jpg": (saved(picture(), "jpeg"), "jpeg", 1, 30),
    "animated.gif": (
        saved(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "gif",
        2,
        30,
    ),
    "animated.webp": (
        saved(frames[0], "webp", save_all=True, append_images=frames[1:]),
        *("webp", 2, 30),
    ),
    "cmyk.jpg": (saved(picture("CMYK"), "jpeg"), "jpeg", 1, 30),
    "sixteen_bit.png": (sixteen_bit(), "png", 1, 30),
    "transparent.png": (saved(picture("RGBA"), "png"), "png", 1, 30),
    "clear.png": (saved(Image.new("RGBA", (40, 30), (9, 9, 9, 0)), "png"), "png", 1, 30),
    "palette.png": (saved(picture("P"), "png", transparency=3), "png", 1, 30),
    "grey_alpha.png": (saved(picture("LA"), "png"), "png", 1, 30),
    "one_bit.png": (saved(picture("1"), "png"), "png", 1, 30),
    "turned.jpg": (saved(picture(), "jpeg", exif=turned()), "jpeg", 1, 30),
    "one_pixel.png": (saved(picture(width=1, height=1), "png"), "png", 1, 1),
    "line.png": (saved(picture(width=5000, height=1), "png"), "png", 1, 1),
    "deep.tiff": (saved(picture(), "tiff"), "tiff", 1, 30),
    "wrong_name.png": (saved(picture(), "bmp"), "bmp", 1, 30),
    "says_it_has_2_31_frames.png": (apng(2**31), "png", 2, 30),
    "20_000_directories.tiff": (tiff(directories=20_000), "tiff", 20_000, 1),
    "photo_of_ten_scans.jpg": (saved(picture(), "jpeg", progressive=True), "jpeg", 1, 30),
}
whole = saved(picture(width=200, height=200), "png")
BAD = {
    "empty.jpg": b"",
    "page.jpg": b"<!doctype html><title>Sign in</title>",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "cut.jpg": saved(picture(width=200, height=200), "jpeg")[:-3000],
    "cut.png": whole[: len(whole) // 2],
    "header_only.png": whole[:33],
    "corrupt.png": whole[:60] + b"\xa5" * 900 + whole[960:],
    "bomb.png": bomb(),
    "zeros.webp": b"RIFF\x24\x00\x00\x00WEBP" + bytes(28),
    "scans.jpg": scanned(1500, 900),
    "segments.jpg": segmented(1001),
    "comments.gif": commented(100_001),
    "directories.tiff": tiff(directories=100_001),
    "tile.tiff": tiff((322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 0), (325, 4, 1, 1)),
    "chunks.png": png_with(chunk(b"aaAa") * 100_001),
    "profile.png": png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50 << 20)))),
    "text.png": png_with(*[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 20)))] * 80),
}
FILES = {name: body for name, (body, *_) in GOOD.items()} | BAD


def write_folder(pool):
    for name, body in FILES.items():
        (pool / name).write_bytes(body)
        (pool / name).with_suffix(".txt").write_text(name)
    return "ingest.image_folder"


def write_tar(pool):
    with tarfile.open(pool / "00000.tar", "w") as tar:
        for number, (name, body) in enumerate(FILES.items()):
            told = json.dumps({"url": name, "caption": name}).encode()
            for suffix, data in ((name.rpartition(".")[2], body), ("json", told)):
                header = tarfile.TarInfo(f"{number:04d}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return "ingest.webdataset"


@pytest.fixture(scope="module", params=[write_folder, write_tar])
def seen(request, tmp_path_factory):
    """Every stage's values by image name, the funnel, and the exported table."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "pool").mkdir()
    uses = request.param(folder / "pool")
    (folder / "it.yaml").write_text(RECIPE.replace("INGEST", uses))
    plan = make_plan(load_recipe(str(folder / "it.yaml"), [f"pool.path={folder / 'pool'}"]))
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    finished = Finished(outcome.state, port=0)
    tables = {
        name: finished.written(planned)
        for name, planned in plan.stages.items()
        if planned.gives_rows
    }
    names = tables["pool"]["url"].to_pylist()
    rows = {
        stage: dict(zip(names, table.to_pylist(), strict=True)) for stage, table in tables.items()
    }
    exported = pa.concat_tables(
        pq.read_table(file) for file in (folder / "run").glob("stages/shards-*/out/*.parquet")
    )
    return rows, funnel(outcome.state), exported


def test_every_file_is_a_row(seen):
    rows, *_ = seen
    assert sorted(rows["pool"]) == sorted(FILES)
    assert all(row["image"] == FILES[name] for name, row in rows["pool"].items())


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_is_seen_and_exported_as_it_came(name, seen):
    rows, _, exported = seen
    body, image_format, count, side = GOOD[name]
    look = rows["look"][name]
    assert (look["image_format"], look["frames"], look["min_side"]) == (image_format, count, side)
    assert look["reason"] is None
    assert rows["emb"][name]["image_embedding"] is not None
    assert rows["subset"][name]["keep"]
    assert body in exported["image"].to_pylist()


@pytest.mark.parametrize("name", BAD)
def test_an_image_without_pixels_is_null_with_a_reason_and_stays_behind(name, seen):
    rows, _, exported = seen
    look, emb = rows["look"][name], rows["emb"][name]
    assert look["reason"] == "undecodable"
    assert look["min_side"] is look["mean_luma"] is None
    assert (emb["reason"], emb["image_embedding"]) == ("no_image", None)
    assert emb["text_embedding"] is not None
    assert rows["subset"][name]["reason"] == "undefined:min_side"
    assert BAD[name] not in exported["image"].to_pylist()


def test_the_funnel_counts_them_at_the_stage_that_could_not_see_them(seen):
    _, found, exported = seen
    (end,) = found.ends
    (cause,) = end.causes
    assert (end.rows, end.kept) == (len(FILES), len(GOOD))
    assert (cause.stage, cause.reason, cause.rows) == ("look", "undecodable", len(BAD))
    assert len(exported) == len(GOOD)


def test_transparency_is_seen_on_white_and_16_bits_as_their_upper_8(seen):
    rows, *_ = seen
    assert rows["look"]["clear.png"]["mean_luma"] == 255
    assert rows["look"]["sixteen_bit.png"]["mean_luma"] == pytest.approx(127.5, abs=1)
    assert rows["look"]["turned.jpg"]["aspect_ratio"] == pytest.approx(4 / 3)
