"""Measures an image cheaply: size and shape, light, colour, sharpness and flatness."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE, REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker
from clipmill.stages.ops.images.pixels import PIXELS, UNDECODABLE, rows_of

# Shapes: H height, W width of one image.

IMAGE_FORMAT = Column("image_format", pa.string(), "name", "jpeg, png, gif, webp, bmp, tiff, avif.")
FRAMES = Column("frames", pa.int32(), "1 up", "Frames of the file: more than one is an animation.")
MIN_SIDE = Column("min_side", pa.int32(), "pixels", "The shorter side of the stored image.")
ASPECT_RATIO = Column("aspect_ratio", pa.float32(), "1 up", "Longer side to shorter.")
MEAN_LUMA = Column("mean_luma", pa.float32(), "0 to 255", "Mean of the grey image.")
LUMA_STD = Column("luma_std", pa.float32(), "0 to 127.5", "Its deviation: 0 is one flat colour.")
COLORFULNESS = Column("colorfulness", pa.float32(), "0 up", "0 is grey; 59 quite, 109 extremely.")
SHARPNESS = Column("sharpness", pa.float32(), "0 up", "Variance of the grey image's Laplacian.")
ENTROPY = Column("entropy", pa.float32(), "0 to 8 bits", "Of the grey image: 0 is one flat colour.")
FLAT_SHARE = Column("flat_share", pa.float32(), "0 to 1", "Share of the most frequent colour.")
COLOR_STEPS = 32  # of a channel: colours of one step count as one


@dataclass(frozen=True, kw_only=True)
class AnnotateImage(RowStage):
    """Format, frames, size, light, colour, sharpness, flatness; null if it does not decode.

    Source: min_side and aspect_ratio as in DataComp's basic filter; grey is Rec. 601;
    colorfulness Hasler & Suesstrunk 2003, section 3.3 (M3); sharpness Pech-Pacheco et al. 2000.
    Error: all but format, frames and size are of the decoded image, at most a megapixel; grey is
    rounded to 8 bits, up to 0.5 off. Sharpness grows with noise and with JPEG blocks.
    Example: {after: [ingest.image_folder]}
    """

    version = 2
    determinism = "exact"
    batch_rows = 64  # of decoded images, 3 MB each at most
    reads = (IMAGE, PIXELS)
    writes = (
        *(IMAGE_FORMAT, FRAMES, MIN_SIDE, ASPECT_RATIO),
        *(MEAN_LUMA, LUMA_STD, COLORFULNESS, SHARPNESS, ENTROPY, FLAT_SHARE),
    )
    reasons = ("no_image", "undecodable")
    advice = UNDECODABLE

    def open(self, worker: Worker) -> RowFunction:
        return annotate


def annotate(batch: pa.Table) -> pa.Table:
    """Returns the measures of every row, or a reason."""
    image, pixels = batch[IMAGE.name], batch[PIXELS.name]
    rows = [  # one at a time, as images differ in size
        {} if rgb is None else {**shape(body), **look(rgb)}
        for body, rgb in zip(image.to_pylist(), rows_of(pixels), strict=True)
    ]
    types = pa.schema([(c.name, c.dtype) for c in AnnotateImage.writes])
    undefined = pc.make_struct(image.is_null(), pixels.is_null())
    reason = pc.case_when(undefined, *AnnotateImage.reasons).cast(REASON_TYPE)
    return pa.Table.from_pylist(rows, types).append_column(REASON.name, reason)


def shape(body: bytes) -> dict[str, str | int | float]:
    """Returns the measures of the header of a decodable image."""
    from clipmill.stages.ops.images.encoded import probe

    header = probe(body)
    short, long = sorted((header.width, header.height))
    return {
        IMAGE_FORMAT.name: header.format,
        FRAMES.name: header.frames,
        MIN_SIDE.name: short,
        ASPECT_RATIO.name: long / short,
    }


def look(rgb_HW3: NDArray[np.uint8]) -> dict[str, float]:
    """Returns the measures of the pixels."""
    import cv2

    grey_HW = cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY)
    share_L = np.bincount(grey_HW.reshape(-1), minlength=256) / grey_HW.size
    bits_L = np.log2(share_L, where=share_L > 0, out=np.zeros(256))
    colors = cv2.calcHist([rgb_HW3], [0, 1, 2], None, [COLOR_STEPS] * 3, [0, 256] * 3)
    return {
        MEAN_LUMA.name: float(grey_HW.mean()),
        LUMA_STD.name: float(grey_HW.std()),
        COLORFULNESS.name: colorfulness(rgb_HW3),
        SHARPNESS.name: float(cv2.Laplacian(grey_HW, cv2.CV_16S).var()),
        ENTROPY.name: abs(float((share_L * bits_L).sum())),
        FLAT_SHARE.name: float(colors.max() / grey_HW.size),
    }


def colorfulness(rgb_HW3: NDArray[np.uint8]) -> float:
    """Returns spread plus 0.3 times distance from grey, in red-green and yellow-blue axes."""
    red_HW, green_HW, blue_HW = np.moveaxis(rgb_HW3.astype(np.int16), 2, 0)
    red_green_HW, yellow_blue_HW = red_HW - green_HW, (red_HW + green_HW) / 2 - blue_HW
    spread = np.hypot(red_green_HW.std(), yellow_blue_HW.std())
    distance = np.hypot(red_green_HW.mean(), yellow_blue_HW.mean())
    return float(spread + 0.3 * distance)
