"""Vectors of a model, looked at before anything is done with them: a broken model gets no number.

A vector that is zero or not finite has no direction. Where a few inputs have such, they are to
blame, and come out as NaN; where more than a tenth have, the model is, and is refused.
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
    """A function that embeds, and NaN in the place of a vector that is zero or not finite.

    StageError, which names the model, where more than a tenth of what it has embedded so far are
    so. The first such vector has it embed 64 `probes` too: so a pool of a few odd rows blames no
    model, and a broken one is refused at a single row.
    """

    def __init__(
        self, embed: Callable[..., NDArray[np.float32]], probes: Callable[[], Inputs], model: str
    ) -> None:
        self.embed, self.probes, self.model = embed, probes, model
        self.seen = self.bad = 0

    def __call__(self, *inputs: Any) -> NDArray[np.float32]:
        """(N, D) of the inputs."""
        row_ND = self.embed(*inputs)
        bad_N = self._counted(row_ND)
        if not self.bad:
            return row_ND
        if self.bad == bad_N.sum():  # the first ones
            self.prove()
        self._refuse()
        return np.where(bad_N[:, None], np.float32(np.nan), row_ND)

    def prove(self) -> None:
        """StageError where the model has no vectors of the probes."""
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
    """A model of images and texts whose vectors are watched, of each way apart."""

    def __init__(self, model: Any, name: str) -> None:
        self.inside = model
        self.width: int = model.width
        self.sha256: str | None = model.sha256
        of_prompts = "embed_prompts" if hasattr(model, "embed_prompts") else "embed_texts"
        self.embed_images = Watched(self._embed("embed_images"), pictures, name)
        self.embed_texts = Watched(self._embed("embed_texts"), texts, name)
        self.embed_prompts = Watched(self._embed(of_prompts), texts, name)

    @property
    def network(self) -> Any:
        """The name of open_clip's network, None of others."""
        return getattr(self.inside, "network", None)

    def _embed(self, way: str) -> Callable[..., NDArray[np.float32]]:
        return lambda inputs: getattr(self.inside, way)(inputs)  # some have no way for texts


def pictures() -> Inputs:
    """Noise in each its own colour."""
    draw = np.random.default_rng(0)
    high_N3 = draw.integers(32, 256, (PROBES, 3))
    return (list(draw.integers(0, high_N3[:, None, None], (PROBES, 32, 32, 3), np.uint8)),)


def texts() -> Inputs:
    """Plain captions, none twice."""
    things = ("a dog", "a red car", "two people", "the sea", "a cup of tea", "an old house", "snow")
    return ([f"a photo of {things[n % len(things)]}, number {n}" for n in range(PROBES)],)
