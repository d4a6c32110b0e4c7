"""Finds text in pictures, and reads it if asked, by PP-OCR's networks out of a package."""

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import REASON, TEXT_BOXES, Column
from clipmill.pipeline.extras import missing
from clipmill.pipeline.stage import Gpus, OneUp, RowFunction, RowStage, Worker, location
from clipmill.stages.ops.images.pixels import PIXELS, RGB, rows_of

# Shapes: K boxes of a picture, H x W pixels, V levels of a pixel.

TEXT_SHARE = Column("text_share", pa.float32(), "0 to 1", "Share of the picture inside text boxes.")
OCR_TEXT = Column("ocr_text", pa.string(), "lines", "Its text, line by line from the top.")
MODELS = {"Det": "models/PP-OCRv6_det_small.onnx", "Rec": "models/PP-OCRv6_rec_small.onnx"}
LEAST_SIDE = 16  # pixels once scaled: of less the network has no cell
LEAST_CERTAIN = 0.5  # of a line that is read, rapidocr's own
LONG = 2  # a line's longer side to its shorter: a lone shape is not long
LOW, WORD = 1 / 3, 1.5  # or its shorter side to the picture's, and then longer to shorter


@dataclass(frozen=True, kw_only=True)
class TextBoxes(RowStage):
    """Quadrilaterals of text lines, and the share of the picture inside them, overlaps once.

    Null if undecodable; an empty list and 0 without text. With `ocr`, the text too.

    Source: PP-OCRv6 (PaddleOCR, Apache-2.0) by rapidocr, detection at its own thresholds. Departs:
    small pictures are not enlarged to 736 pixels, which takes 3 to 10 times as long; a box that is
    not long is left out, for the network takes a lone shape for a letter.
    Error: rapidocr's own with `limit_type: max`. A strip whose shorter side is below 16 pixels once
    scaled has no boxes, nor has a lone letter, or a word of three a third as high as its picture;
    vertical and turned text is seldom read.
    Example: {after: [ingest.image_folder]}
    """

    side: OneUp = 736  # pixels: larger pictures are scaled so that this is their longer side
    ocr: bool = False  # read the lines, too: `ocr_text`
    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one

    version = 4
    determinism = "exact"
    batch_rows = 64
    reads = (PIXELS,)
    reasons = ("no_image",)

    @property
    def writes(self) -> tuple[Column, ...]:
        return (TEXT_BOXES, TEXT_SHARE, OCR_TEXT) if self.ocr else (TEXT_BOXES, TEXT_SHARE)

    def look(self) -> None:
        if find_spec("rapidocr") is None:
            raise missing("rapidocr", f"its weights, {MODELS['Det']}")

    def open(self, worker: Worker) -> RowFunction:
        self.look()
        reader = opened(worker, self.side, self.ocr)
        return lambda batch: self.annotate(batch, reader)

    def annotate(self, batch: pa.Table, reader: Any) -> pa.Table:
        """Returns the boxes of every row, or a reason."""
        rgb = rows_of(batch[PIXELS.name])
        lost = {REASON.name: self.reasons[0]}
        rows = [lost if picture is None else self.found(picture, reader) for picture in rgb]
        types = pa.schema([(column.name, column.dtype) for column in (*self.writes, REASON)])
        return pa.Table.from_pylist(rows, types)

    def found(self, rgb: RGB, reader: Any) -> dict[str, Any]:
        """Returns boxes, their share and text of one picture."""
        import cv2
        from rapidocr.utils.process_img import map_boxes_to_original

        height, width = rgb.shape[:2]
        boxes_K42, lines = np.empty((0, 4, 2), np.float32), []
        if min(height, width) * min(1, self.side / max(height, width)) >= LEAST_SIDE:
            image, steps = reader.preprocess_img(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
            found, _, read, _ = reader.run_ocr_steps(image, steps)
            if found.boxes is not None:
                boxes_K42 = map_boxes_to_original(found.boxes, steps, height, width)
                is_line_K = may_be_lines(boxes_K42, height, width)
                boxes_K42 = boxes_K42[is_line_K]
                rows = zip(read.txts or (), read.scores or (), is_line_K, strict=False)
                lines = [t for t, c, line in rows if line and c >= LEAST_CERTAIN and t.strip()]
        corners_K42 = boxes_K42 / np.array([width, height], np.float32)
        return {
            TEXT_BOXES.name: corners_K42.reshape(-1, 8).tolist(),
            TEXT_SHARE.name: np.count_nonzero(inside(boxes_K42, height, width)) / (height * width),
            OCR_TEXT.name: "\n".join(lines),
        }


def may_be_lines(boxes_K42: NDArray[np.float32], height: int, width: int) -> NDArray[np.bool_]:
    """Returns (K,) whether a quadrilateral in pixels is long enough for a line, or a low word."""
    sides_K2 = np.linalg.norm(boxes_K42[:, :2] - boxes_K42[:, 1:3], axis=2)
    short_K, long_K = np.sort(sides_K2, axis=1).T
    is_low_K = short_K < LOW * min(height, width)
    return long_K >= np.where(is_low_K, WORD, LONG) * short_K


def inside(boxes_K42: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """Returns (H, W) 1 inside any of the quadrilaterals, which are in pixels, else 0."""
    import cv2

    mask_HW = np.zeros((height, width), np.uint8)
    for box_42 in boxes_K42:
        cv2.fillPoly(mask_HW, [np.round(box_42).astype(np.int32)], 1)
    return mask_HW


def opened(worker: Worker, side: int, ocr: bool) -> Any:
    """Opens rapidocr with the networks of its package, pinned; it downloads none."""
    import cv2
    import rapidocr

    files = {part: Path(rapidocr.__file__).parent / file for part, file in MODELS.items()}
    for part in MODELS if ocr else ("Det",):
        digest = sha256(files[part].read_bytes()).hexdigest()
        worker.pin(f"rapidocr/{MODELS[part]}", digest)
    engine = "EngineConfig.onnxruntime"
    reader: Any = rapidocr.RapidOCR(
        params={
            **{f"{part}.model_path": str(path) for part, path in files.items()},
            **{f"{engine}.{kind}_op_num_threads": worker.threads for kind in ("intra", "inter")},
            f"{engine}.use_cuda": worker.device.startswith("cuda"),
            "Det.limit_type": "max",
            "Det.limit_side_len": side,
            "Global.min_side_len": 1,
            "Global.text_score": 0.0,  # lines that are not certain keep their box
            "Global.log_level": "critical",
        }
    )
    blank_HW3 = np.zeros((LEAST_SIDE, LEAST_SIDE, 3), np.uint8)
    reader(blank_HW3, use_det=True, use_cls=False, use_rec=ocr)  # loads its detector
    prepare = reader.text_det.get_preprocess()
    level_1V3 = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    level_1V3 = prepare.normalize(level_1V3).astype(np.float32)
    prepare.normalize = partial(cv2.LUT, lut=level_1V3)  # its own values, in a fifth of its time
    reader.text_det.get_preprocess = lambda: prepare
    return reader
