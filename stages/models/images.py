"""Embeddings of pictures: by a model of images and texts, or by the network of `embed.features`."""

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
    """RecipeError where there is no such model. Imports no framework."""
    width(model)


def width(model: str) -> int | None:
    """Width of its vectors, None where only the weights say it; RecipeError as `check` has it."""
    return FEATURES_WIDTH if model.partition(":")[0] == FEATURES else width_of(model)


def embedder(model: str, worker: Worker) -> Embed:
    """The function that embeds pictures by a model; pins the digest of its weights."""
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
    """The function of a stage's setting `model`, or of the folder of `model: "stage:x"`, if any."""
    if trained:  # a stage's model is the engine's to watch
        return load(f"checkpoint:{trained}", worker.device, worker.threads).embed_images
    return embedder(model, worker) if model else None
