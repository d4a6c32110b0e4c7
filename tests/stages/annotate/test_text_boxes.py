"""annotate.text_boxes: rapidocr's own boxes and words, shares, planted words, thin pictures."""

from collections.abc import Iterator
from io import BytesIO
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.faults import PHRASES, faulty_file
from clipmill.pipeline.pools.generated import generated_drawings
from clipmill.pipeline.pools.picture import on_background, picture_of
from clipmill.stages.annotate.text_boxes import MODELS, TextBoxes, inside, may_be_lines
from tests.stages.networks import drawn, pictures, worker

LINES = ("SALE 50 OFF", "hello world")


def poster(height: int = 160, width: int = 240) -> np.ndarray:
    """Two lines of text on a light ground."""
    rgb = np.full((height, width, 3), (250, 240, 200), np.uint8)
    for number, line in enumerate(LINES):
        place = (10, 50 + 70 * number)
        cv2.putText(rgb, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, (120, 0, 30), 2, cv2.LINE_AA)
    return rgb


@pytest.mark.slow("networks of 31 MB")
def test_boxes_and_words_are_rapidocrs_own(tmp_path):
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{it}_op_num_threads": 1 for it in ("intra", "inter")}
    limits = {"Det.limit_type": "max", "Det.limit_side_len": 736, "Global.log_level": "critical"}
    by_hand = RapidOCR(params=threads | limits)
    padded, shrunk = poster(64, 300)[26:56], poster(70, 2400)  # by rapidocr: below 30, above 2000
    rgb = [poster(), poster(160, 1000), padded, shrunk, drawn((90, 60))[0], None]
    pinned = []
    out = TextBoxes(ocr=True).open(worker(tmp_path, pin=lambda what, digest: pinned.append(what)))(
        pictures(rgb)
    )
    assert pinned == [f"rapidocr/{file}" for file in MODELS.values()]
    for picture, boxes, text in zip(
        rgb[:4], out["text_boxes"].to_pylist(), out["ocr_text"].to_pylist(), strict=False
    ):
        found = by_hand(picture[:, :, ::-1], use_cls=False)
        height, width = picture.shape[:2]
        corners = np.array(found.boxes) / [width, height]
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4, 2), corners, atol=1e-6)
        lines = LINES if height > 100 else LINES[:1]
        assert text.splitlines() == list(found.txts) == list(lines)
    assert out["text_boxes"].to_pylist()[4:] == [[], None]
    assert out["text_share"].to_pylist()[4:] == [0, None]
    assert out["ocr_text"].to_pylist()[4:] == ["", None]
    assert out["reason"].to_pylist() == [*[None] * 5, "no_image"]
    assert 0.1 < out["text_share"][0].as_py() < 0.6


@pytest.mark.slow("networks of 31 MB")
def test_boxes_in_which_nothing_is_read_stay_when_lines_are_read(tmp_path):
    rgb = np.full((120, 240, 3), 255, np.uint8)
    y = 60 + np.random.default_rng(55).integers(-8, 8, 34)
    points = np.stack([np.arange(20, 220, 6), y], 1).astype(np.int32)
    cv2.polylines(rgb, [points], False, (0, 0, 0), 2)
    (plain, read) = (
        TextBoxes(ocr=ocr).open(worker(tmp_path))(pictures([rgb])) for ocr in (False, True)
    )
    assert len(plain["text_boxes"][0]) == 1
    assert read.select(plain.column_names) == plain
    assert read["ocr_text"].to_pylist() == [""]


def test_a_line_of_spaces_and_a_doubtful_one_are_no_text():
    boxes = np.float32([[[5, y], [95, y], [95, y + 9], [5, y + 9]] for y in (5, 25, 45)])
    read = SimpleNamespace(txts=(" ", "no", "yes"), scores=(0.9, 0.4, 0.5))
    steps = {"preprocess": {"ratio_h": 1.0, "ratio_w": 1.0}}
    reader = SimpleNamespace(
        preprocess_img=lambda bgr: (bgr, steps),
        run_ocr_steps=lambda bgr, steps: (SimpleNamespace(boxes=boxes), None, read, None),
    )
    row = TextBoxes(ocr=True).found(poster(64, 100), reader)
    assert row["ocr_text"] == "yes"
    assert len(row["text_boxes"]) == 3


def photographs(count: int) -> Iterator[tuple[Image.Image, str]]:
    """Pieces of scikit-learn's two photographs, 96 to 256 pixels wide, and words for them."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(count):
        chance, photo = Chance(0, "photo", str(number)), photos[number // 2 % 2]
        side = chance.between("side", 96, 256)
        x = chance.between("x", 0, photo.width - side)
        y = chance.between("y", 0, photo.height - side)
        words = chance.pick("words", ("red fox", "wooden chair", "SALE 50 %", "by the sea"))
        yield photo.crop((x, y, x + side, y + side)), words


def shapes(count: int) -> Iterator[tuple[Image.Image, str]]:
    """Shapes that the generated pool draws, and their captions."""
    for number, drawing in enumerate(generated_drawings(count, 1)):
        side = Chance(0, "shape", str(number)).between("side", 96, 256)
        yield on_background(picture_of(drawing, side)), drawing.words["en"].label


@pytest.mark.slow("80 pictures, 1 s")
@pytest.mark.parametrize("grounds", [photographs, shapes])
def test_the_share_of_text_tells_planted_words_in_each_script_from_clean_pictures(
    grounds, tmp_path
):
    rgb, scripts = [], []
    for number, (picture, caption) in enumerate(grounds(80)):
        chance = Chance(0, "words", str(number))
        script = [*PHRASES][number // 2 % len(PHRASES)] if number % 2 else "none"
        if script != "none":
            words = chance.pick("phrase", PHRASES[script] or (caption,))
            picture = Image.open(BytesIO(faulty_file("drawn_text", picture, words, chance)))
        rgb.append(np.asarray(picture))
        scripts.append(script)
    share = TextBoxes().open(worker(tmp_path))(pictures(rgb))["text_share"].to_numpy()
    script_N = np.array(scripts)
    for script in PHRASES:
        some_N = np.isin(script_N, ("none", script))
        assert roc_auc_score(script_N[some_N] == script, share[some_N]) >= 0.95, script


def test_a_share_counts_overlapping_boxes_once():
    box = np.array([[0, 0], [49, 0], [49, 49], [0, 49]], np.float32)
    assert inside(np.stack([box]), 100, 100).mean() == 0.25
    assert inside(np.stack([box, box]), 100, 100).mean() == 0.25
    assert inside(np.stack([box, box + np.float32([25, 0])]), 100, 100).mean() == 0.375
    assert inside(np.stack([box + np.float32([-30, 80])]), 100, 100).mean() == 0.04  # half outside


def test_a_box_that_is_not_long_is_a_lone_shape():
    sizes = {(46, 30): True, (30, 46): True, (44, 30): False, (81, 40): True, (79, 40): False}
    boxes = [[[0, 0], [x, 0], [x, y], [0, y]] for x, y in sizes]
    assert may_be_lines(np.float32(boxes), 99, 120).tolist() == [*sizes.values()]
    assert may_be_lines(np.empty((0, 4, 2), np.float32), 99, 99).tolist() == []


def test_a_picture_without_room_for_text_has_no_boxes(tmp_path):
    answer = TextBoxes(side=64).open(worker(tmp_path))
    out = answer(pictures(drawn((1, 1), (1, 20_000), (20_000, 1), (8, 64), (15, 15))))
    assert out["text_boxes"].to_pylist() == [[]] * 5
    assert out["text_share"].to_pylist() == [0] * 5
    assert out["text_boxes"].type == pa.list_(pa.list_(pa.float32(), 8))
