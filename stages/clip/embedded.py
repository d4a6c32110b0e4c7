"""What a loss sees of a batch: the vectors of this process's rows, and those of all processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Shapes: N rows and M texts of this process, G rows and H texts of the whole batch, D width of the
# embedding. One process has N = G and M = H; where each row has one text, N = M and G = H.


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The local rows against the global batch; vectors are unit, float32 or float64.

    A loss gives each local row its share of what one process would have got with the whole batch,
    so that the losses of all processes add up to that. Gradients flow into the global tensors too:
    who gathers them sends each row's back to its process.
    """

    image_ND: Tensor
    text_MD: Tensor
    image_GD: Tensor  # the same tensors as the local ones, in one process
    text_HD: Tensor
    row_N: Tensor  # int64, ascending: where each local row stands in the whole batch
    image_of_M: Tensor  # int64, the row of the whole batch that each local text belongs to
    image_of_H: Tensor  # ascending
    scale: Tensor  # the factor of all cosines
    bias: Tensor | None = None  # added to all logits; None where the loss asks for none
    index_N: Tensor | None = None  # int64, sample_index: dense and stable over runs
    # stored vectors that the loss asks for, by name: of the local rows, and of the whole batch
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_all: Mapping[str, Tensor] = field(default_factory=dict)
    tile: int | None = None  # texts or images of the other side at a time; None: all at once

    @property
    def is_whole(self) -> bool:
        """Whether this process has the whole batch."""
        return self.image_GD is self.image_ND and self.text_HD is self.text_MD


def whole(
    image_ND: Tensor, text_MD: Tensor, scale: Tensor, image_of_M: Tensor | None = None, **more
) -> Embedded:
    """The batch of one process; without `image_of_M` each row has one text, in the rows' order."""
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
    """(G,) how many texts each row has."""
    return torch.bincount(batch.image_of_H, minlength=len(batch.image_GD))


def share_of_text(batch: Embedded) -> Tensor:
    """(H,) one over the number of texts of the text's row."""
    return (1 / texts_of_row(batch).to(batch.text_HD.dtype))[batch.image_of_H]
