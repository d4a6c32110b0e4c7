"""CLIP's loss, and that of telling an image's, or a text's, other view from all others."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.losses import clip

# Shapes: N local rows, G rows of the whole batch, D width of the embedding.

TEXTS = "one"
VIEWS = ("image", "text")
POSITIVE = ("temperature",)


def loss(
    batch: Embedded, *, w_image: float = 1.0, w_text: float = 1.0, temperature: float = 0.1
) -> Tensor:
    """Returns (N,) nats: CLIP's loss of the first views, and SimCLR's of each kind that has two.

    SimCLR's is the mean over both directions of finding a view's other one among all views of both.

    Source: SLIP (Mu et al. 2022), `image_views: 2`, with a head there; Cross the Gap (Mistretta et
    al. 2025) by its abstract; CleanCLIP (Bansal et al. 2023) for both. Departs: its code finds a
    second view among second views alone, one way, at CLIP's scale, and halves each kind's part.
    Error: SimCLR's part not by tiles.
    """
    loss_N = clip.loss(batch)
    image, text = (batch.image_ND, batch.image_GD), (batch.text_MD, batch.text_HD)
    for other in batch.image_views:
        loss_N = loss_N + w_image * simclr(image, other, batch.row_N, temperature)
    for other in batch.text_views:
        loss_N = loss_N + w_text * simclr(text, other, batch.row_N, temperature)
    return loss_N


def simclr(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], row_N: Tensor, temperature: float
) -> Tensor:
    """Returns (N,) nats of two views, each the vectors of local rows and of the whole batch.

    Source: SimCLR (Chen et al. 2020), with both views of other rows as negatives.
    """
    without_self = partial(torch.scatter, dim=1, index=row_N[:, None], value=-torch.inf)
    both_ways = [
        cross_entropy(
            torch.cat([own_ND @ other_GD.T, without_self(own_ND @ own_GD.T)], 1) / temperature,
            row_N,
            reduction="none",
        )
        for (own_ND, own_GD), (_, other_GD) in ((a, b), (b, a))
    ]
    return (both_ways[0] + both_ways[1]) / 2
