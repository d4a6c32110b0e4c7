"""`checkpoint:URI` and `stage:NAME`: models of kind `clip`, as train.clip leaves them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.models.image_text import ImageTextModel


def width(name: str) -> None:
    """Not known to a plan, which opens no weights: the recipe says it."""
    if not name:
        raise ValueError("write checkpoint:<URI> or stage:<name>")


def load(name: str, device: str, threads: int, card: str | None = None) -> "ImageTextModel":
    """The model in that folder, of several the first unless a card is named.

    StageError where it is none, another's, or changed.
    """
    from stages.clip import checkpoint

    return checkpoint.load(name, device, threads, card)
