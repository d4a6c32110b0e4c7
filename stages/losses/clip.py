"""CLIP's loss: each half of a pair finds the other one in the batch."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from stages.clip.embedded import Embedded

# Shapes: N local rows, G rows of the whole batch.

TEXTS = "one"


def loss(batch: Embedded) -> Tensor:
    """(N,) nats: mean of the two cross-entropies of finding a pair's other half in the batch.

    ln G where all embeddings are equal, 0 where each pair is infinitely nearer than the rest.

    Source: CLIP (Radford et al. 2021), figure 3; rows are unit vectors, scale is at most 100.
    """
    by_image_NG = batch.scale * batch.image_ND @ batch.text_HD.T
    by_text_NG = by_image_NG.T  # in one process
    if not batch.is_whole:
        by_text_NG = batch.scale * batch.text_MD @ batch.image_GD.T
    by_image_N = cross_entropy(by_image_NG, batch.row_N, reduction="none")
    by_text_N = cross_entropy(by_text_NG, batch.row_N, reduction="none")
    return (by_image_N + by_text_N) / 2
