"""Checks a model's vectors before they are used, so that a broken model yields no result.

A vector that is zero or not finite has no direction. If up to a tenth of the inputs give one, the
inputs are to blame, and become NaN; if more do, the model is to blame, and is refused.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.stages.ops.vectors.matrices import refuse_unusable, unusable

# Shapes: N inputs, D width of the embedding, H x W pixels.

PROBES = 64
Inputs = tuple[Any, ...]


class Watched:
    """A wrapped embedding function; vectors that are zero or not finite become NaN.

    Raises StageError, with the model's name, once more than a tenth of all vectors so far are bad.
    After the first bad vector it embeds 64 `probes` too, so that a pool of a few odd rows blames no
    model, and a broken model is refused at a single row.
    """

    def __init__(
        self, embed: Callable[..., NDArray[np.float32]], probes: Callable[[], Inputs], model: str
    ) -> None:
        self.embed, self.probes, self.model = embed, probes, model
        self.seen = self.bad = 0

    def __call__(self, *inputs: Any) -> NDArray[np.float32]:
        """Returns (N, D) vectors of the inputs."""
        row_ND = self.embed(*inputs)
        bad_N = self._counted(row_ND)
        if not self.bad:
            return row_ND
        if self.bad == bad_N.sum():  # the first ones
            self.prove()
        self._refuse()
        return np.where(bad_N[:, None], np.float32(np.nan), row_ND)

    def prove(self) -> None:
        """Embeds the probes; raises StageError if too many vectors are bad."""
        self._counted(self.embed(*self.probes()))
        self._refuse()

    def _counted(self, row_ND: NDArray[np.float32]) -> NDArray[np.bool_]:
        bad_N = unusable(row_ND)
        self.seen += len(bad_N)
        self.bad += int(bad_N.sum())
        return bad_N

    def _refuse(self) -> None:
        do = "name a model that is whole; one that diverged in training: lower its `learning_rate`"
        refuse_unusable(self.bad, self.seen, f"model '{redacted(self.model)}'", do)


class WatchedModel:
    """A model of images and texts whose vectors are checked, separately for images and texts."""

    def __init__(self, model: Any, name: str) -> None:
        self.inside = model
        self.width: int = model.width
        self.sha256: str | None = model.sha256
        of_prompts = "embed_prompts" if hasattr(model, "embed_prompts") else "embed_texts"
        self.embed_images = Watched(embed(model, "embed_images"), pictures, name)
        self.embed_texts = Watched(embed(model, "embed_texts"), texts, name)
        self.embed_prompts = Watched(embed(model, of_prompts), texts, name)

    @property
    def network(self) -> Any:
        """The name of open_clip's network; None for other models."""
        return getattr(self.inside, "network", None)

    @property
    def scale(self) -> float | None:
        """The factor of its cosines that it has learnt; None if it has none."""
        return getattr(self.inside, "scale", None)


def embed(model: Any, method: str) -> Callable[..., NDArray[np.float32]]:
    """Returns a model's method, looked up when it is called: some embed no texts."""
    return lambda inputs: getattr(model, method)(inputs)  # not of the wrapper: that is a circle


def pictures() -> Inputs:
    """Returns noise images, each in a colour of its own."""
    draw = np.random.default_rng(0)
    high_N3 = draw.integers(32, 256, (PROBES, 3))
    return (list(draw.integers(0, high_N3[:, None, None], (PROBES, 32, 32, 3), np.uint8)),)


def texts() -> Inputs:
    """Returns plain captions, all different."""
    things = ("a dog", "a red car", "two people", "the sea", "a cup of tea", "an old house", "snow")
    return ([f"a photo of {things[n % len(things)]}, number {n}" for n in range(PROBES)],)
