"""Batches of unit vectors, whole and as processes would have them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.clip.embedded import Embedded, whole


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Leaf tensor of unit vectors in the last axis."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return normalize(vectors, dim=-1).to(dtype).requires_grad_()


def of_pairs(image_ND: Tensor, text_ND: Tensor, scale: float = 1.0, **more) -> Embedded:
    """One process, one text a row."""
    return whole(image_ND, text_ND, torch.tensor(scale, dtype=image_ND.dtype), **more)


def split(batch: Embedded, sizes: Sequence[int]) -> list[Embedded]:
    """What processes with so many rows each would have of a batch, of all texts of their rows."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        here = (batch.image_of_H >= start) & (batch.image_of_H < end)
        first, last = int((batch.image_of_H < start).sum()), int((batch.image_of_H < end).sum())
        parts.append(
            Embedded(
                image_ND=batch.image_GD[start:end],
                text_MD=batch.text_HD[first:last],
                image_GD=batch.image_GD,
                text_HD=batch.text_HD,
                row_N=torch.arange(start, end),
                image_of_M=batch.image_of_H[here],
                image_of_H=batch.image_of_H,
                scale=batch.scale,
                bias=batch.bias,
                teacher={name: rows[start:end] for name, rows in batch.teacher_all.items()},
                teacher_all=batch.teacher_all,
                tile=batch.tile,
            )
        )
    return parts
