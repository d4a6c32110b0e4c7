"""Loads `checkpoint:URI` and `stage:NAME`: models of images and texts that train.clip stored."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.pipeline.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.stages.clip.towers import Towers

# Shapes: N images or texts, D width of the embedding, H x W pixels.

ROWS = 64  # every call of a tower has this many rows, so that neighbours change no bit


def width(name: str) -> None:
    """Returns None: a plan opens no weights, so the recipe states the width."""
    if not name:
        do = "write checkpoint:<URI> or stage:<name>"
        raise RecipeError("a model without a name", "key `model`", do)


def load(
    name: str, device: str = "cpu", threads: int = 1, card: str | None = None
) -> "TrainedClip":
    """Loads the model in a folder or its out/: the first one, or that of a named card.

    Raises StageError if there is no such model, or it has changed.
    """
    import torch

    from clipmill.stages.clip.named import rebuilt
    from clipmill.stages.models.saved import CLIP, built, read_model

    width(name)
    facts, weights = read_model(name, CLIP, card)
    torch.set_num_threads(threads)
    where = f"{redacted(name)}, `architecture` in model.json"
    model = built(partial(rebuilt, facts), weights, where, lambda towers: towers.network)
    return TrainedClip(model, facts["sha256"], device)


class TrainedClip:
    """A trained model that gives unit float32 embeddings."""

    def __init__(self, model: "Towers", sha256: str, device: str) -> None:
        self.width = model.width
        self.sha256 = sha256
        self.model = model.eval().to(device)
        self.scale = model.scale.item()
        self._device = device

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows of 8-bit RGB images of any size."""
        import torch

        size = self.model.image_size
        embedded = []
        for images in _chunks(image_HW3):
            pixels_NHW3 = np.zeros((ROWS, size, size, 3), np.uint8)
            for i, image in enumerate(images):  # sizes differ
                pixels_NHW3[i] = self.model.reads.prepare(image)
            pixels_N3HW = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).to(self._device)
            with torch.inference_mode():
                embedded.append(self.model.embed_images(pixels_N3HW)[: len(images)])
        return self._array(embedded)

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows."""
        import torch

        embedded = []
        for some in _chunks(texts):
            token_T, start_N = self.model.tokenize([*some, *[""] * (ROWS - len(some))])
            tokens, starts = (torch.from_numpy(x).to(self._device) for x in (token_T, start_N[:-1]))
            with torch.inference_mode():
                embedded.append(self.model.embed_texts(tokens, starts)[: len(some)])
        return self._array(embedded)

    def _array(self, embedded: list["Tensor"]) -> NDArray[np.float32]:
        if not embedded:
            return np.empty((0, self.width), np.float32)
        return np.concatenate([part.float().cpu().numpy() for part in embedded])


def _chunks(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + ROWS] for start in range(0, len(values), ROWS)]
