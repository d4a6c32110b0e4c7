"""The input of a loss: vectors of this process's rows, and those of all processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import Module

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
    # of the whole batch, K texts that are false of their image; None if the loss reads none
    negative_KD: Tensor | None = None
    negative_of_K: Tensor | None = None  # int64, ascending: the row of each
    # second views, if any: vectors of this process's rows, and of all
    image_views: Sequence[tuple[Tensor, Tensor]] = ()
    text_views: Sequence[tuple[Tensor, Tensor]] = ()
    step: int = 0
    own: Module | None = None  # what the loss's `state` returned
    # tensors of all ranks' rows, in order, without gradient
    gather: Callable[[Tensor], Tensor] = Tensor.detach
    tile: int | None = None  # columns of the logits computed at a time; None: all at once

    @property
    def is_whole(self) -> bool:
        """Returns whether this process has the whole batch."""
        return self.image_GD is self.image_ND and self.text_HD is self.text_MD
