"""Embeds pictures by a model of images and texts, or by the network of `embed.features`.

Cut out of a border of one colour, and turned, a picture is alike whatever margin and turn it has.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Worker
from clipmill.stages.models.image_text import load, width_of
from clipmill.stages.models.watched import Watched, pictures

# Shapes: N images, D width of the embedding.

FEATURES = "features"
PRECISIONS = "", "bfloat16", "float32"  # after features:
FEATURES_WIDTH = 1280
Embed = Callable[[list[NDArray[np.uint8]]], NDArray[np.float32]]  # image_HW3 to (N, D)
TURNS = (8.0, -8.0)  # degrees; each finds copies turned by some four more or less, too
VIEWS = 1 + len(TURNS)
REFUSED, TAKEN = 2**15 - 1, 2**12  # pixels: of a side that OpenCV does not turn, and its new length


def width(model: str) -> int | None:
    """Returns the width of a model's vectors, None if only the weights tell it.

    Raises RecipeError if there is no such model. Imports no framework.
    """
    kind, _, precision = model.partition(":")
    if kind == FEATURES and precision not in PRECISIONS:
        do = "write features, or features:float32"
        raise RecipeError(f"features have no precision {precision!r}", f"model '{model}'", do)
    return FEATURES_WIDTH if kind == FEATURES else width_of(model)


def embedder(model: str, worker: Worker) -> Embed:
    """Returns a function that embeds pictures; pins the digest of the model's weights."""
    kind, _, precision = model.partition(":")
    if kind != FEATURES:
        network = load(model, worker.device, worker.threads)
        if network.sha256:
            worker.pin(model, network.sha256)
        return network.embed_images
    from clipmill.stages.models.features import ImageFeatures
    from clipmill.stages.models.text_features import Precision

    features = ImageFeatures(
        cast(Precision, precision or "bfloat16"), worker.device, worker.threads
    )
    worker.pin(model, features.sha256)
    return Watched(features, pictures, model)


def embedder_of(model: str | None, trained: str | None, worker: Worker) -> Embed | None:
    """Returns `embedder` of the setting `model`, or of a stage's trained model, if one is set."""
    if trained:  # not pinned: the engine checks models of stages
        return load(f"checkpoint:{trained}", worker.device, worker.threads).embed_images
    return embedder(model, worker) if model else None


def views(rgb: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Returns `cut_out` of the picture, and of it turned by TURNS, on white."""
    from clipmill.stages.ops.images.mask import cut_out

    upright = cut_out(rgb)
    return [upright, *(cut_out(_turned(upright, degrees)) for degrees in TURNS)]


def _turned(rgb: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Turns a picture about its centre, on a white canvas that holds all of it."""
    import cv2

    if (longest := max(rgb.shape)) >= REFUSED:
        size = [max(1, side * TAKEN // longest) for side in rgb.shape[1::-1]]
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    height, width = rgb.shape[:2]
    turn_23 = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    cosine, sine = np.abs(turn_23[0, :2])
    wide, high = int(height * sine + width * cosine) + 1, int(height * cosine + width * sine) + 1
    turn_23[:, 2] += (wide - width) / 2, (high - height) / 2
    turned = cv2.warpAffine(rgb, turn_23, (wide, high), borderValue=(255, 255, 255))
    return turned.astype(np.uint8, copy=False)
