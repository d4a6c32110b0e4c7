"""The input of a loss: vectors of this process's rows, and those of all processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Shapes: N rows and M texts of this process, G rows and H texts of the whole batch, D width of the
# embedding. One process has N = G and M = H; if each row has one text, N = M and G = H.


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The local rows against the global batch; vectors are unit, float32 or float64.

    A loss returns each local row's share of the loss over the whole batch, so that the losses of
    all processes add up to it. Gradients flow into the global tensors too; the gather sends them
    back to the row's process.
    """

    image_ND: Tensor
    text_MD: Tensor
    image_GD: Tensor  # the same tensors as the local ones, in one process
    text_HD: Tensor
    row_N: Tensor  # int64, ascending: index of each local row in the whole batch
    image_of_M: Tensor  # int64, index in the whole batch of each local text's row
    image_of_H: Tensor  # ascending
    scale: Tensor  # the factor of all cosines
    bias: Tensor | None = None  # added to all logits; None if the loss has no bias
    index_N: Tensor | None = None  # int64, sample_index: dense and stable over runs
    # stored vectors that the loss reads, by column: of the local rows, and of the whole batch
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_all: Mapping[str, Tensor] = field(default_factory=dict)
    tile: int | None = None  # columns of the logits computed at a time; None: all at once

    @property
    def is_whole(self) -> bool:
        """Returns whether this process has the whole batch."""
        return self.image_GD is self.image_ND and self.text_HD is self.text_MD


def whole(
    image_ND: Tensor, text_MD: Tensor, scale: Tensor, image_of_M: Tensor | None = None, **more
) -> Embedded:
    """Returns the batch of one process; without `image_of_M`, text n is of row n."""
    row_N = torch.arange(len(image_ND), device=image_ND.device)
    image_of_M = row_N if image_of_M is None else image_of_M
    more |= {"teacher_all": more["teacher"]} if "teacher" in more else {}
    return Embedded(
        image_ND=image_ND,
        text_MD=text_MD,
        image_GD=image_ND,
        text_HD=text_MD,
        row_N=row_N,
        image_of_M=image_of_M,
        image_of_H=image_of_M,
        scale=scale,
        **more,
    )


def texts_of_row(batch: Embedded) -> Tensor:
    """Returns (G,) the number of texts of each row."""
    return torch.bincount(batch.image_of_H, minlength=len(batch.image_GD))


def share_of_text(batch: Embedded) -> Tensor:
    """Returns (H,) each text's weight: one over the number of texts of its row."""
    return (1 / texts_of_row(batch).to(batch.text_HD.dtype))[batch.image_of_H]
