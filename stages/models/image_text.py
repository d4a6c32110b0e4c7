"""Models of images and texts in one space, by scheme.

    open_clip:NAME/TAG    open_clip's network, weights by tag
    open_clip:NAME@FILE   the same, weights from a file
    checkpoint:URI        a model that train.clip left there
    stage:NAME            the same, of a stage of the recipe
    reference             no weights: for tests

A scheme is a file of this folder with `width(name)` and `load(name, device, threads)`; `name` is
what stands after the colon. `width` is asked while a recipe is planned, so it imports no framework.
"""

from importlib import import_module
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Shapes: N images or texts, D width of the embedding, H x W pixels.

SCHEMES = {
    "open_clip": "stages.models.open_clip",
    "checkpoint": "stages.models.checkpoint",
    "stage": "stages.models.checkpoint",
    "reference": "stages.models.reference",
}


class ImageTextModel(Protocol):
    """Embeds images and texts; an embedding does not depend on what else is in the call."""

    width: int

    @property
    def sha256(self) -> str | None:
        """Of its weights; None where it has none."""
        ...

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, D) unit rows, of 8-bit RGB images of any size."""
        ...

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """(N, D) unit rows."""
        ...


def width_of(model: str) -> int | None:
    """Width of a model's embeddings, None where only its weights say it.

    A ValueError names the schemes where there is none such.
    """
    adapter, name = _adapter(model)
    width: int | None = adapter.width(name)
    return width


def load(model: str, device: str = "cpu", threads: int = 1) -> ImageTextModel:
    """The model that a scheme string names, on a device."""
    adapter, name = _adapter(model)
    return adapter.load(name, device, threads)


def _adapter(model: str) -> tuple[ModuleType, str]:
    scheme, _, name = model.partition(":")
    if scheme not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise ValueError(f"model {model!r} has the unknown scheme {scheme!r}; known: {known}")
    return import_module(SCHEMES[scheme]), name
