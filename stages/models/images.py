"""Embeds pictures by a model of images and texts, or by the network of `embed.features`."""

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.stage import Worker
from clipmill.stages.models.image_text import load, width_of
from clipmill.stages.models.watched import Watched, pictures

# Shapes: N images, D width of the embedding, H x W pixels.

FEATURES = "features"  # or features:float32
FEATURES_WIDTH = 1280
Embed = Callable[[list[NDArray[np.uint8]]], NDArray[np.float32]]  # image_HW3 to (N, D)


def check(model: str) -> None:
    """Checks that a model exists; raises RecipeError. Imports no framework."""
    width(model)


def width(model: str) -> int | None:
    """Returns the width of a model's vectors, None if only the weights tell it; or RecipeError."""
    return FEATURES_WIDTH if model.partition(":")[0] == FEATURES else width_of(model)


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
