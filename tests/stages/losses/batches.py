"""Batches of unit vectors, whole and as processes would have them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.clip.whole_batch import whole

TEXTS = (1, 3, 2, 1, 5)  # of the first row, the second, …
TEACHERS = ("image_a", "image_b", "text_a", "text_b")
CENTRES, NEAREST = 12, 3


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit vectors in the last axis, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return normalize(vectors, dim=-1).to(dtype).requires_grad_()


def of_pairs(image_ND: Tensor, text_ND: Tensor, scale: float = 1.0, **more) -> Embedded:
    """One process, one text a row."""
    return whole(image_ND, text_ND, torch.tensor(scale, dtype=image_ND.dtype), **more)


def drawn(
    rows: int,
    *,
    several: bool = False,
    scale: float = 14.0,
    dtype: torch.dtype = torch.float64,
    tile: int | None = None,
) -> Embedded:
    """One process, random vectors, a bias, and two teachers; with `several` 1 to 5 texts a row.
    Every other row has a negative."""
    texts_N = torch.tensor([TEXTS[row % len(TEXTS)] if several else 1 for row in range(rows)])
    has_negative_N = torch.arange(0, rows, 2)
    return whole(
        random(rows, 6, seed=1, dtype=dtype),
        random(int(texts_N.sum()), 6, seed=2, dtype=dtype),
        torch.tensor(scale, dtype=dtype, requires_grad=True),
        torch.arange(rows).repeat_interleave(texts_N),
        bias=torch.tensor(-2.0, dtype=dtype, requires_grad=True),
        teacher={
            name: random(rows, 5, seed=3 + n, dtype=dtype).detach()
            for n, name in enumerate(TEACHERS)
        },
        negative_KD=random(len(has_negative_N), 6, seed=9, dtype=dtype),
        negative_of_K=has_negative_N,
        image_views=[twice(random(rows, 6, seed=11, dtype=dtype))],
        text_views=[twice(random(int(texts_N.sum()), 6, seed=12, dtype=dtype))],
        tile=tile,
    )


def twice(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """A second view, as one process has it."""
    return vectors, vectors


def parameters(batch: Embedded) -> tuple[Tensor, ...]:
    """What a loss has gradients for."""
    assert batch.bias is not None
    assert batch.negative_KD is not None
    views = [whole_GD for _, whole_GD in (*batch.image_views, *batch.text_views)]
    return batch.image_GD, batch.text_HD, batch.scale, batch.bias, batch.negative_KD, *views


def with_parameters(batch: Embedded, *these: Tensor) -> Embedded:
    """The batch of one process at other values of `parameters`."""
    image_GD, text_HD, scale, bias, negative_KD, *views = these
    both = {"image_ND": image_GD, "text_MD": text_HD, "image_GD": image_GD, "text_HD": text_HD}
    seconds = {"image_views": [twice(views[0])], "text_views": [twice(views[1])]}
    return replace(batch, **both, **seconds, scale=scale, bias=bias, negative_KD=negative_KD)


def gradients(loss_N: Tensor, batch: Embedded, slope_N: Tensor | None = None) -> Sequence[Tensor]:
    """Of the sum of the losses, or of their sum under weights."""
    weighted = loss_N.sum() if slope_N is None else loss_N @ slope_N
    return torch.autograd.grad(weighted, parameters(batch), materialize_grads=True)


def split(batch: Embedded, sizes: Sequence[int]) -> list[Embedded]:
    """What processes with so many rows each have of a batch."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        is_here_H = (batch.image_of_H >= start) & (batch.image_of_H < end)
        first, last = int((batch.image_of_H < start).sum()), int((batch.image_of_H < end).sum())
        parts.append(
            replace(
                batch,
                image_ND=batch.image_GD[start:end],
                text_MD=batch.text_HD[first:last],
                image_views=[(view[start:end], view) for _, view in batch.image_views],
                text_views=[(view[first:last], view) for _, view in batch.text_views],
                row_N=torch.arange(start, end),
                image_of_M=batch.image_of_H[is_here_H],
                teacher={name: rows[start:end] for name, rows in batch.teacher_all.items()},
            )
        )
    return parts
