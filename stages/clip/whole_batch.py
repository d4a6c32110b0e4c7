"""Makes the input of a loss in one process, for tests; counts the texts of its rows, for losses."""

import torch
from torch import Tensor

from clipmill.stages.clip.embedded import Embedded

# Shapes: N rows and M texts of this process, G rows of the whole batch, D width of the embedding.


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
