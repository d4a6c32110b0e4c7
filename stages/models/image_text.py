"""Models of images and texts in one space, named `SCHEME:NAME` in a recipe.

    open_clip:NAME/TAG    open_clip's network, weights by tag
    open_clip:NAME@FILE   the same network, weights from a file
    timm:NAME@FILE        a network of timm's for images alone, weights from a file
    checkpoint:URI        a model that train.clip stored there
    stage:NAME            a model that a stage of the recipe trains
    reference             no weights: for tests
    mine:NAME             a scheme of your own: a file stages/models/mine.py on the Python path

The file of a scheme has two functions; each gets the NAME after the colon:

    width(name)                   width of the embeddings, None where only the weights say it;
                                  RecipeError where there is no such model
    load(name, device, threads)   an ImageTextModel; StageError where its weights are not to be had

`width` is asked while a recipe is planned, so the file imports frameworks inside `load`.
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

INTERFACE = ("width", "load")


class ImageTextModel(Protocol):
    """Embeds images and texts; an embedding does not depend on what else is in the call."""

    width: int

    @property
    def sha256(self) -> str | None:
        """Digest of the weights; None where the model has none."""
        ...

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, D) unit rows, of 8-bit RGB images of any size."""
        ...

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """(N, D) unit rows."""
        ...


def width_of(model: str) -> int | None:
    """Width of a model's embeddings, None where only its weights say it.

    RecipeError where there is no such scheme or no such model.
    """
    adapter, name = _adapter(model)
    width: int | None = adapter.width(name)
    return width


def checked_width(model: str) -> int | None:
    """`width_of`; RecipeError where there is no such model: the plan stops, and not the run."""
    try:
        return width_of(model)
    except ValueError as error:
        do = "name a model that is there; `clipmill doctor --model …` tries one"
        raise RecipeError(str(error), "key `model`", do) from None


def load(model: str, device: str = "cpu", threads: int = 1) -> ImageTextModel:
    """The model that a scheme string names, on a device; a broken one refuses to embed."""
    from clipmill.stages.models.watched import WatchedModel

    adapter, name = _adapter(model)
    return WatchedModel(adapter.load(name, device, threads), model)


def proof(
    model: str, worker: Worker, lacking: Callable[[Sequence[Environment]], list[str]]
) -> list[Finding]:
    """Whether a model loads, and embeds a picture and a text as it should."""
    loaded: Any = load(model)
    loaded.embed_images.prove()
    if not model.startswith("timm:"):  # of images alone
        loaded.embed_texts.prove()
    return [Finding(model, "good", f"loads; embeddings are {loaded.width} wide")]


def look_for(model: str) -> None:
    """StageError where the file or folder that a model's name holds is not there; reads neither."""
    scheme, _, name = model.partition(":")
    if scheme in ("open_clip", "timm") and "@" in name:
        file = str(Path(name.partition("@")[2]).expanduser())
        need_file(file, "model", "copy the weights there, or mend the path")
    if scheme == "checkpoint":
        need_folder(name, "model", "name the folder that a training stage wrote")


def schemes() -> list[str]:
    """Every scheme on the path, those of a user's own folders included; imports none of them."""
    files = own_code.files("models").values()
    return sorted({"stage", *(file.path.stem for file in files if _is_scheme(file.read()))})


def _is_scheme(source: bytes) -> bool:
    return all(f"\ndef {name}(".encode() in source for name in INTERFACE)


def _adapter(model: str) -> tuple[ModuleType, str]:
    """The file of a model's scheme, and the name after the colon."""
    scheme, _, name = model.partition(":")
    if scheme not in schemes():
        raise RecipeError(
            f"unknown scheme {scheme!r}",
            f"model {model!r}",
            f"{did_you_mean(scheme, schemes())} (a scheme is a file stages/models/<scheme>.py)",
        )
    module = "checkpoint" if scheme == "stage" else scheme
    return own_code.load(f"models.{module}", f"model {model!r}"), name
