"""CLIP's loss of two views that keep the patches an average of the weights attends to."""

from math import cos, isqrt, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.clip.losses import over_pairs
from clipmill.stages.losses import clip
from clipmill.stages.losses.intra_modal import simclr

# Shapes: N local rows, V = 2 N local pictures (first views, then second), P patches of a picture,
# B blocks of patches, Q patches of a block, K kept, S patches a side, D width of the embedding.

TEXTS = "one"
VIEWS = ("image",)
NEEDS = ("average", "patch_dropout")
POSITIVE = ("temperature",)
BLOCKS = 7  # a side, as near as the patches allow


def loss(
    batch: Embedded, *, w_views: float = 1.0, w_average: float = 2.0, temperature: float = 0.1
) -> Tensor:
    """Returns (N,) nats: half of CLIP's loss of each view, SimCLR's between both, and how far each
    is from the whole picture under the average, 2 - 2 cosine.

    A view loses its share `patch_dropout` of blocks of patches, those of least attention. The decay
    of `average` rises to 1 by half a cosine.

    Source: A-CLIP (Yang et al. 2023), the paper's loss: in its released code SimCLR compares the
    first view with itself. Average 0.996, dropout 0.5. Departs: of embeddings, without its heads;
    each view has its own attention and target, theirs have those of one picture round both; the
    first step's average is its weights.
    Error: by tiles only CLIP's part.
    """
    own: Any = batch.own
    first, second = (batch.image_ND, batch.image_GD), batch.image_views[0]
    same_N = simclr(first, second, batch.row_N, temperature)
    view_VD = torch.cat([first[0], second[0]])
    far_N = (2 - 2 * (view_VD * own.target_VD).sum(1)).view(2, -1).mean(0)
    return over_pairs(clip.loss, batch) + w_views * same_N + w_average * far_N


class Attention(nn.Module):
    """Chooses the patches of each picture, and holds (V, D) targets, before a step embeds them."""

    target_VD: Tensor

    @torch.no_grad()
    def begin(self, trainer: Any, pixels_V3HW: Tensor) -> None:
        average, pieces = trainer.average, trainer.execution.accumulate
        decay = rising(trainer.decay, trainer.step / trainer.schedule.steps)
        average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        seen: list[Tensor] = []
        hooks = []
        for module in average.module.eval().modules():
            if isinstance(module, nn.MultiheadAttention):
                hooks += [
                    module.register_forward_pre_hook(
                        lambda _, inputs, more: (inputs, {**more, "need_weights": True}),
                        with_kwargs=True,
                    ),
                    module.register_forward_hook(
                        lambda _, __, out: seen.append(out[1][:, 0, 1:].float())
                    ),
                ]
        parts = []
        for piece in pixels_V3HW.chunk(pieces):
            vector_ND = average.module.embed_images(piece, trainer.dtype)
            parts.append((vector_ND, torch.stack(seen).mean(0)))
            seen.clear()
        for hook in hooks:
            hook.remove()
        self.target_VD, attention_VP = map(torch.cat, zip(*parts, strict=True))
        for patches in trainer.patches:
            patches.kept_NK = attended(attention_VP, patches.share)


def rising(decay: float, done: float) -> float:
    """Returns the decay of a step, with the share of steps before it: from `decay` to 1."""
    return 1 - (1 - decay) * (1 + cos(pi * done)) / 2


def attended(attention_NP: Tensor, share: float) -> Tensor:
    """Returns (N, K) the patches of the blocks with most attention: all but `share`, and one."""
    side = isqrt(attention_NP.shape[1])
    size = next(n for n in range(max(1, round(side / BLOCKS)), 0, -1) if side % n == 0)
    block_NB = avg_pool2d(attention_NP.view(-1, 1, side, side), size).flatten(1)
    count = int(block_NB.shape[1] * (1 - share)) + 1
    patch_SS = torch.arange(side**2, device=attention_NP.device).view(side, side)
    patch_BQ = patch_SS.unfold(0, size, size).unfold(1, size, size).flatten(2).flatten(0, 1)
    return patch_BQ[block_NB.topk(count).indices].flatten(1)


def state(*, samples: int, width: int, seed: int, settings: Any) -> Attention:
    return Attention()
