"""A batch embedded in pieces, with the gradient of the whole: memory for one piece's graph.

Source: GradCache (Gao et al. 2021): embeddings first without a graph, the loss of all of them, then
each piece once more with a graph, into which the loss's gradient at its embeddings goes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clipmill.pipeline.errors import StageError

# Shapes: N images or texts, T tokens of all texts, D width of the embedding.


class Pieces:
    """Embeddings of one tower: `all_ND` to compute a loss from; then `backward`, to the weights."""

    def __init__(self, embeds: Sequence[Callable[[], Tensor]]) -> None:
        self.embeds = embeds
        with torch.no_grad():
            parts = [embed() for embed in embeds]
        self.sizes = [len(part) for part in parts]
        self.all_ND = torch.cat(parts).requires_grad_()

    def backward(self) -> None:
        """Adds to the weights' gradients what the loss's backward left at the embeddings."""
        if self.all_ND.grad is None:
            return
        for embed, gradient_ND in zip(self.embeds, self.all_ND.grad.split(self.sizes), strict=True):
            embed().backward(gradient_ND)


def text_pieces(token_T: Tensor, starts_N: Tensor, pieces: int) -> list[tuple[Tensor, Tensor]]:
    """Tokens and starts of as many runs of texts, as equal in number as can be."""
    ends = [int(starts[0]) for starts in starts_N.chunk(pieces)[1:]] + [len(token_T)]
    return [
        (token_T[int(starts[0]) : end], starts - starts[0])
        for starts, end in zip(starts_N.chunk(pieces), ends, strict=True)
    ]


def refuse_batch_norm(model: nn.Module) -> None:
    """A batch norm would see the rows of a piece, and not the batch: another model."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            raise StageError(
                "a model with batch norm: in pieces it would be another model",
                "key `accumulate`",
                "write accumulate: 1 and more `ranks`, or take a model with layer norms (a ViT)",
            )
