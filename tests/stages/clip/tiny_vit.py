"""A tiny ViT of open_clip's as towers, and batches drawn for it: no export, no batch norm."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from clipmill.stages.clip.batch import Batch, part_of
from clipmill.stages.clip.towers import FIRST_SCALE, Towers

# Shapes: B rows and M texts of a part of a batch, T tokens, L tokens of a text, D width.

SIZE, WORDS, CONTEXT = 16, 64, 12


class TinyViT(Towers):
    """Two layers of width 16 a tower; embeddings of 8."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        super().__init__()
        torch.manual_seed(0)
        vision = CLIPVisionCfg(layers=2, width=16, head_width=8, patch_size=8, image_size=SIZE)
        text = CLIPTextCfg(context_length=CONTEXT, vocab_size=WORDS, width=16, heads=2, layers=2)
        self.clip = CLIP(8, vision, text).to(dtype)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE), dtype=dtype))
        self.bias = None

    def embed_images(self, pixels_N3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.clip.encode_image(pixels_N3HW.to(dtype) / 127.5 - 1, normalize=True)

    def embed_texts(
        self, token_T: Tensor, starts_N: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        ends_N = torch.cat([starts_N[1:], starts_N.new_tensor([len(token_T)])])
        token_NL = token_T.new_zeros(len(starts_N), CONTEXT)
        for row, (start, end) in enumerate(zip(starts_N.tolist(), ends_N.tolist(), strict=True)):
            token_NL[row, : end - start] = token_T[start:end]
        return self.clip.encode_text(token_NL, normalize=True)


def drawn(
    n: int,
    rank: int = 0,
    of: int = 1,
    *,
    rows: int = 12,
    most: int = 1,
    negatives: bool = False,
    views: int = 1,
) -> Batch:
    """Batch n's part of a rank: noise, weights of 1 and 2, one to `most` texts a row; with
    `negatives` the first eight rows have one; two `views` of a row are of other rows."""
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 256, (rows, 3, SIZE, SIZE), np.uint8)
    texts_B = np.arange(rows) % most + 1
    length_M = rng.integers(3, CONTEXT, texts_B.sum())
    flat = [np.r_[rng.integers(1, WORDS - 1, size - 1), WORDS - 1] for size in length_M]
    part = part_of(rows, rank, of)
    first, last = np.r_[0, texts_B.cumsum()][[part.start, part.stop]]
    mine = flat[first:last] + flat[::-1][first:last] * (views - 1)
    false = [np.r_[rng.integers(1, WORDS - 1, 4), WORDS - 1] for _ in range(8)] if negatives else []
    mine += false[part]
    return Batch(
        pixels=np.concatenate([pixels[part], pixels[::-1][part]][:views]),
        tokens=np.concatenate(mine).astype(np.int32),
        starts=np.cumsum([0, *map(len, mine[:-1])]),
        image_of=np.repeat(np.arange(part.stop - part.start), texts_B[part]),
        weights=(np.arange(rows, dtype=np.float32) % 2 + 1)[part],
        rows=np.arange(rows)[part],
        index=np.arange(rows)[part],
        negative_of=np.arange(len(false[part])) if negatives else None,
    )
