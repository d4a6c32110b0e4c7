"""annotate.text_boxes: rapidocr's own boxes and words, shares, planted words, thin pictures."""

from io import BytesIO

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.faults import faulty_file
from clipmill.stages.annotate.text_boxes import MODELS, TextBoxes, inside
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
    rgb = [poster(), poster(160, 1000), drawn((90, 60))[0], None]
    pinned = []
    out = TextBoxes(ocr=True).open(worker(tmp_path, pin=lambda what, digest: pinned.append(what)))(
        pictures(rgb)
    )
    assert pinned == [f"rapidocr/{file}" for file in MODELS.values()]
    for picture, boxes, text in zip(
        rgb[:2], out["text_boxes"].to_pylist(), out["ocr_text"].to_pylist(), strict=False
    ):
        found = by_hand(picture[:, :, ::-1], use_cls=False)
        height, width = picture.shape[:2]
        corners = np.array(found.boxes) / [width, height]
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4, 2), corners, atol=1e-6)
        assert text.splitlines() == list(found.txts) == list(LINES)
    assert out["text_boxes"].to_pylist()[2:] == [[], None]
    assert out["text_share"].to_pylist()[2:] == [0, None]
    assert out["ocr_text"].to_pylist()[2:] == ["", None]
    assert out["reason"].to_pylist() == [None, None, None, "no_image"]
    assert 0.1 < out["text_share"][0].as_py() < 0.6


@pytest.mark.slow("200 pictures, 2 s")
def test_the_share_of_text_tells_planted_words_from_clean_photographs(tmp_path):
    """Pieces of scikit-learn's two photographs, 96 to 256 pixels wide; words as pools draw them."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rgb = []
    for number in range(200):
        chance, photo = Chance(0, "photo", str(number)), photos[number // 2 % 2]
        side = chance.between("side", 96, 256)
        x = chance.between("x", 0, photo.width - side)
        y = chance.between("y", 0, photo.height - side)
        piece = photo.crop((x, y, x + side, y + side))
        if number % 2:
            words = chance.pick("words", ("red fox", "wooden chair", "SALE 50 %", "by the sea"))
            piece = Image.open(BytesIO(faulty_file("drawn_text", piece, words, chance)))
        rgb.append(np.asarray(piece))
    share = TextBoxes().open(worker(tmp_path))(pictures(rgb))["text_share"].to_numpy()
    assert roc_auc_score(np.arange(200) % 2, share) >= 0.95


def test_a_share_counts_overlapping_boxes_once():
    box = np.array([[0, 0], [49, 0], [49, 49], [0, 49]], np.float32)
    assert inside(np.stack([box]), 100, 100).mean() == 0.25
    assert inside(np.stack([box, box]), 100, 100).mean() == 0.25
    assert inside(np.stack([box, box + np.float32([25, 0])]), 100, 100).mean() == 0.375
    assert inside(np.stack([box + np.float32([-30, 80])]), 100, 100).mean() == 0.04  # half outside


def test_a_picture_without_room_for_text_has_no_boxes(tmp_path):
    answer = TextBoxes(side=64).open(worker(tmp_path))
    out = answer(pictures(drawn((1, 1), (1, 20_000), (20_000, 1), (8, 64), (15, 15))))
    assert out["text_boxes"].to_pylist() == [[]] * 5
    assert out["text_share"].to_pylist() == [0] * 5
    assert out["text_boxes"].type == pa.list_(pa.list_(pa.float32(), 8))
