"""MLCD's loss: an image's nearest cluster centres are its labels; of texts it asks nothing."""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipmill.metadata.uid import mixed
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.embedded import Embedded

# Shapes: N local rows, m centres of a row, K centres in all, C that a step may take, D width.

TEXTS = "first"
TEACHER = ("clusters",)
MOST = 2**24  # centres: their numbers are read as float32


def loss(
    batch: Embedded,
    *,
    clusters: str = "nearest_clusters",  # column of the export, as cluster.kmeans writes it
    centres: int = 1_000_000,  # cluster.kmeans's k: of more most have no row
    share: float = 0.1,  # of the other centres, that a step takes as negatives
    scale: float = 64.0,  # of cosines
) -> Tensor:
    """Returns (N,) nats: ln(1 + sum of e^-s) over an image's centres, and ln(1 + sum of e^s) over
    others; s is the scaled cosine to a centre's weights, which learn.

    The others are by hash of the seed and the step; an image's own are left out.

    Source: MLCD (An et al. 2024), m = 8 of a million centres, share 0.1; the scale of 64 as
    recalled. Departs: without the margin of its code, which is recalled only. Its text tower learns
    afterwards, with `lock: image`.
    Error: not by tiles.
    """
    assert isinstance(batch.own, Centres)
    own_Nm = batch.teacher[clusters].long()
    if own_Nm.min() < 0 or own_Nm.max() >= centres:
        wrong = int(own_Nm.min() if own_Nm.min() < 0 else own_Nm.max())
        found = f"a centre of number {wrong}, and `centres` says {centres}"
        raise StageError(found, "key `loss_settings`", "write the k of that cluster.kmeans")
    others = int(share * (centres - own_Nm.shape[1]))
    there = drawn(batch.own.seed, batch.step, centres, min(centres, others + own_Nm.shape[1]))
    there_C = torch.from_numpy(there).to(own_Nm.device)
    weight = batch.own.weight
    near_N = -scale * (batch.image_ND[:, None] * normalize(weight[own_Nm], dim=2)).sum(2)
    logit_NC = scale * batch.image_ND @ normalize(weight[there_C], dim=1).T
    place_K = own_Nm.new_full((centres,), len(there))  # past the last
    place_K[there_C] = torch.arange(len(there), device=own_Nm.device)
    is_own_NC = own_Nm.new_zeros((len(own_Nm), len(there) + 1), dtype=torch.bool)
    is_own_NC = is_own_NC.scatter(1, place_K[own_Nm], True)[:, :-1]
    is_other_NC = ~is_own_NC & ((~is_own_NC).cumsum(1) <= others)  # the first not its own
    far_NC = logit_NC.masked_fill(~is_other_NC, -torch.inf)
    return _one_more(near_N) + _one_more(far_NC)


def _one_more(logit_NC: Tensor) -> Tensor:
    """Returns (N,) ln(1 + the sum of e^x)."""
    return nn.functional.pad(logit_NC, (1, 0)).logsumexp(1)


@lru_cache(1)
def drawn(seed: int, step: int, centres: int, count: int) -> np.ndarray:
    """Returns (count,) centres of a step, in the order of their hashes."""
    key = blake2b(f"{seed} centres {step}".encode(), digest_size=8).digest()
    coin_K = mixed(mixed(np.arange(1, centres + 1, dtype=np.uint64)) ^ np.frombuffer(key, ">u8"))
    least = np.argpartition(coin_K, count - 1)[:count]
    return least[np.argsort(coin_K[least])]


class Centres(nn.Module):
    """The weights of all centres."""

    def __init__(self, centres: int, width: int, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.weight = nn.Parameter(torch.randn(centres, width) * 0.01)


def state(*, samples: int, width: int, seed: int, settings: Mapping[str, Any]) -> Centres:
    if not (0 < settings["share"] <= 1 and 0 < settings["centres"] <= MOST):
        found = f"share is {settings['share']}, centres {settings['centres']}"
        do = f"write a share above 0, up to 1, and at most {MOST:,} centres"
        raise StageError(found, "key `loss_settings`", do)
    return Centres(settings["centres"], width, seed)
