"""Loads models of images and texts in one space, named `SCHEME:NAME` in a recipe.

    open_clip:NAME/TAG    a network of open_clip's, weights by tag
    open_clip:NAME@FILE   a network of open_clip's, weights from a file
    timm:NAME@FILE        a network of timm's for images alone, weights from a file
    checkpoint:URI        a model that train.clip stored
    stage:NAME            a model that a stage of the recipe trains
    reference             no weights: for tests
    mine:NAME             a scheme of your own: a file stages/models/mine.py on the Python path

The file of a scheme has two functions that take the NAME after the colon:

    width(name)                   returns the width of the embeddings, None if only the weights
                                  tell it; raises RecipeError if there is no such model
    load(name, device, threads)   returns an ImageTextModel; raises StageError without its weights

`width` is called while a recipe is planned, so the file imports frameworks inside `load`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.stage import Environment, Finding, Worker
from clipmill.stages.ops.outside import need_file, need_folder

# Shapes: N images or texts, D width of the embedding, H x W pixels.


class ImageTextModel(Protocol):
    """A model that embeds images and texts, each independently of the rest of the call."""

    width: int

    @property
    def sha256(self) -> str | None:
        """Digest of the weights; None if the model has none."""
        ...

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows of 8-bit RGB images of any size."""
        ...

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows."""
        ...


def width_of(model: str) -> int | None:
    """Returns the width of a model's embeddings; None if only its weights tell it.

    Raises RecipeError if there is no such scheme or no such model.
    """
    adapter, name = _adapter(model)
    width: int | None = adapter.width(name)
    return width


def checked_width(model: str) -> int | None:
    """Returns `width_of`; turns any ValueError into a RecipeError, which stops the plan."""
    try:
        return width_of(model)
    except ValueError as error:
        do = "name a model that is there; `clipmill doctor --model …` tries one"
        raise RecipeError(str(error), "key `model`", do) from None


def load(model: str, device: str = "cpu", threads: int = 1) -> ImageTextModel:
    """Loads the named model on a device; a broken model refuses to embed."""
    from clipmill.stages.models.watched import WatchedModel

    adapter, name = _adapter(model)
    return WatchedModel(adapter.load(name, device, threads), model)


def proof(
    model: str, worker: Worker, missing: Callable[[Sequence[Environment]], list[str]]
) -> list[Finding]:
    """Loads a model and embeds pictures and texts; raises an error if it is broken."""
    loaded: Any = load(model)
    loaded.embed_images.prove()
    if not model.startswith("timm:"):  # timm embeds images alone
        loaded.embed_texts.prove()
    return [Finding(model, "good", f"loads; embeddings are {loaded.width} wide")]


def look_for(model: str) -> None:
    """Checks that the file or folder in a model's name exists, unread; raises StageError."""
    scheme, _, name = model.partition(":")
    if scheme in ("open_clip", "timm") and "@" in name:
        file = str(Path(name.partition("@")[2]).expanduser())
        need_file(file, "model", "copy the weights there, or mend the path")
    if scheme == "checkpoint":
        need_folder(name, "model", "name the folder that a training stage wrote")


def schemes() -> list[str]:
    """Returns the names of all schemes, those of a user's own folders included; imports none."""
    files = own_code.files("models").values()
    return sorted({"stage", *(file.path.stem for file in files if _is_scheme(file.read()))})


def _is_scheme(source: bytes) -> bool:
    return all(start in source for start in (b"\ndef width(", b"\ndef load("))


def _adapter(model: str) -> tuple[ModuleType, str]:
    """Returns the module of a model's scheme, and the name after the colon."""
    scheme, _, name = model.partition(":")
    module = "checkpoint" if scheme == "stage" else scheme
    file = own_code.find(f"models.{module}")
    if not file or not _is_scheme(file.read()):
        raise RecipeError(
            f"unknown scheme {scheme!r}",
            f"model {model!r}",
            f"{did_you_mean(scheme, schemes())} (a scheme is a file stages/models/<scheme>.py)",
        )
    return own_code.load(f"models.{module}", f"model {model!r}"), name
