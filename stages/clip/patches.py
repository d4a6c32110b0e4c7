"""Drops patches of pictures in training, drawn by hash: the same whatever the ranks and pieces."""

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipmill.metadata.uid import mixed, uniform

# Shapes: N rows of this process or of a piece, P patches of a picture, W width of a layer.


class Patches(nn.Module):
    """Drops a share of each picture's patches in a training's first steps, and no class token.

    Source: FLIP (Li et al. 2023), as open_clip's PatchDropout. Recalled: its last steps see all.
    """

    def __init__(self, patches: int, share: float, steps: int, seed: int) -> None:
        super().__init__()
        self.patches, self.share, self.steps, self.seed = patches, share, steps, seed
        self.drops = False

    def begin(self, step: int, index_N: NDArray[np.int64], device: str) -> None:
        """Draws the patches that a step's rows keep, by their sample_index."""
        key = blake2b(f"{self.seed} patches {step}".encode(), digest_size=8).digest()
        coin_N1 = mixed(index_N.astype(np.uint64) ^ np.frombuffer(key, ">u8"))[:, None]
        patch_P = mixed(np.arange(1, self.patches + 1, dtype=np.uint64))
        noise_NP = uniform(mixed(coin_N1 ^ patch_P)).astype(np.float32)
        self.noise_NP = torch.from_numpy(noise_NP).to(device)
        count = max(1, int(self.patches * (1 - self.share)))
        self.kept_NK = self.noise_NP.topk(count).indices  # A-CLIP sets its own, by noise_NP
        self.place = 0  # row at which the next piece begins; who cuts the pieces moves it
        self.drops = step < self.steps

    def forward(self, x_NPW: Tensor) -> Tensor:
        if not (self.training and self.drops):
            return x_NPW
        kept_NK = self.kept_NK[self.place : self.place + len(x_NPW)]
        kept_NKW = kept_NK[:, :, None].expand(-1, -1, x_NPW.shape[2])
        return torch.cat([x_NPW[:, :1], x_NPW[:, 1:].gather(1, kept_NKW)], 1)


def drop_patches(network: Any, share: float, steps: int, seed: int) -> None:
    """Makes a network drop patches, whose image tower is a ViT of open_clip's."""
    patches = len(network.visual.positional_embedding) - 1
    network.visual.patch_dropout = Patches(patches, share, steps, seed)
