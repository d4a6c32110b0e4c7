"""Blurs faces, or any boxes, and hides the picture as it was from the stages that follow."""

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Literal

import pyarrow as pa
from msgspec import Meta

from clipmill.metadata.schema import FACE_BBOXES, HEIGHT, IMAGE, IMAGE_BYTES, REASON, WIDTH
from clipmill.pipeline.stage import RowFunction, RowStage, Worker
from clipmill.stages.ops.images.blur import BAD_BOX, NO_BOXES, Boxes, fault, soft


@dataclass(frozen=True, kw_only=True)
class Blur(RowStage):
    """The picture with its boxes blurred, encoded anew; without a box its bytes as they were.

    Null if undecodable, if its boxes are unknown, or if one is malformed. Exports after this stage
    hold no other picture. `download.images` with `blur` does it before a picture is stored. Other
    boxes: `read: {face_bboxes: stage.column}`.

    Source: img2dataset 1.47's blurrer, to the pixel; DataComp's resharder writes WebP at 100, too.
    Departs: 1.47 leaves the deviation to OpenCV, a third of the 0.1 of the longest side that
    DataComp (Gadre et al. 2023) was blurred by.
    Error: what an animation shows after its first frame is lost.
    Example: {after: [ingest.image_folder, annotate.faces]}
    """

    encode_format: Literal["jpg", "png", "webp"] = "webp"  # of a picture that is blurred
    # quality of JPEG and WebP, 1 to 100; for PNG the compression, 0 to 9
    encode_quality: Annotated[int, Meta(ge=0, le=100)] = 100

    version = 3
    determinism = "exact"
    batch_rows = 64
    reads = (IMAGE, FACE_BBOXES)
    writes = (IMAGE, IMAGE_BYTES, WIDTH, HEIGHT)
    reasons = ("no_image", "undecodable", NO_BOXES, BAD_BOX)
    advice = MappingProxyType(
        {"undecodable": "open some of these pictures: is the column that is read one of images?"}
    )

    def open(self, worker: Worker) -> RowFunction:
        return partial(written, settings=self)


def written(batch: pa.Table, settings: Blur) -> pa.Table:
    """Returns the picture of every row, or a reason."""
    pairs = zip(batch[IMAGE.name].to_pylist(), batch[FACE_BBOXES.name].to_pylist(), strict=True)
    rows = [of_row(body, boxes, settings) for body, boxes in pairs]
    types = pa.schema([(c.name, c.dtype) for c in (*Blur.writes, REASON)])
    return pa.Table.from_pylist(rows, types)


def of_row(body: bytes | None, boxes: Boxes | None, settings: Blur) -> dict[str, object]:
    """Returns the columns of one row; a missing one is null."""
    from clipmill.stages.ops.images.encoded import probe
    from clipmill.stages.ops.images.opened import ImageError

    if body is None:
        return {REASON.name: "no_image"}
    if reason := fault(boxes):
        return {REASON.name: reason}
    try:
        header = probe(body)
    except ImageError:
        return {REASON.name: "undecodable"}
    image = soft(body, boxes or (), settings.encode_format, settings.encode_quality)
    if image is None:
        return {REASON.name: "undecodable"}
    sizes = {WIDTH.name: header.width, HEIGHT.name: header.height}
    return {IMAGE.name: image, IMAGE_BYTES.name: len(image), **sizes}
