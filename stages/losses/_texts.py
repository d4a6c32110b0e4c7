"""Which texts belong to which rows, where rows have several."""

import torch
from torch import Tensor

from clipmill.stages.clip.embedded import Embedded

# Shapes: G rows and H texts of the whole batch.


def texts_of_row(batch: Embedded) -> Tensor:
    """(G,) how many texts each row has."""
    return torch.bincount(batch.image_of_H, minlength=len(batch.image_GD))


def share_of_text(batch: Embedded) -> Tensor:
    """(H,) one over the number of texts of the text's row."""
    return (1 / texts_of_row(batch).to(batch.text_HD.dtype))[batch.image_of_H]
