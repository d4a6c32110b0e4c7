"""A contrastive loss with a temperature for each row, which a small network tells."""

from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.embedded import Embedded

# Shapes: N local rows, G rows of the whole batch, D width of the embedding, P prototypes, R rows of
# the export.

TEXTS = "one"
VIEWS = ()  # a row's memory is of one pair
LEAST, MOST = 0.005, 0.05  # temperature
PROTOTYPES = 256


def loss(batch: Embedded, *, rho: float = 8.0, gamma: float = 0.8) -> Tensor:
    """Returns (N,) the mean over images and texts of t (ln u + rho).

    t is the row's temperature; u a running mean, with a share `gamma` of the newest, of the batch's
    mean of exp((s_ij - s_ii) / t) over the other rows j: a memory by sample_index. A row that is
    seen first has its batch's. Gradients are those of u's newest terms over u.

    Source: TempNet (Qiu et al. 2024), Bimodal_CL/models/losses.py of its code, with iSogCLR.
    Departs: no dropout; the mean of the two parts, where theirs is their sum; one optimiser.
    Error: not by tiles.
    """
    if len(batch.image_GD) < 2:
        found = "a batch of one row, which has no others"
        raise StageError(found, "key `batch_size`", "write 2 or more")
    own, index_N = batch.own, batch.index_N
    assert isinstance(own, Temperatures)
    assert index_N is not None
    images = own.image(batch.image_ND.detach()), batch.image_ND @ batch.text_HD.T
    texts = own.text(batch.text_MD.detach()), batch.text_MD @ batch.image_GD.T
    index_G, costs = batch.gather(index_N), []
    for (t_N, cosine_NG), log_R in ((images, own.log_image), (texts, own.log_text)):
        cost_N, mean_N = _robust(t_N, cosine_NG, batch.row_N, log_R[index_N], rho, gamma)
        log_R[index_G] = batch.gather(mean_N).to(log_R.dtype)
        costs.append(cost_N)
    return (costs[0] + costs[1]) / 2


def _robust(
    t_N: Tensor, cosine_NG: Tensor, row_N: Tensor, before_N: Tensor, rho: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Returns (N,) the cost of each row in one direction, and (N,) the log of its new mean."""
    above_NG = cosine_NG - cosine_NG.gather(1, row_N[:, None])
    with torch.no_grad():
        ratio_NG = (above_NG / t_N[:, None]).scatter(1, row_N[:, None], -torch.inf)
        here_N = ratio_NG.logsumexp(1) - log(len(cosine_NG.T) - 1)
        mixed_N = torch.logaddexp(before_N.to(here_N) + log(1 - gamma), here_N + log(gamma))
        mean_N = torch.where(before_N.isneginf(), here_N, mixed_N)
        share_NG = (ratio_NG - mean_N[:, None]).exp() / (len(cosine_NG.T) - 1)
        # The slope by t: of t (ln u + rho), where u's newest terms depend on it.
        slope_N = mean_N + rho - (share_NG * ratio_NG.clamp(min=-1e30)).sum(1)
    moving_N = (share_NG * above_NG).sum(1) + slope_N * t_N
    return moving_N + (t_N * (mean_N + rho) - moving_N).detach(), mean_N


class Temperature(nn.Module):
    """A row's temperature, from its embedding and how near that is to some prototypes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(log(0.01)))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, width))
        self.weight = nn.Parameter(torch.ones(PROTOTYPES))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, row_ND: Tensor) -> Tensor:
        """Returns (N,) temperatures from 0.005 to 0.05."""
        near_NP = self.proj(row_ND).sigmoid() @ normalize(self.prototypes, dim=1).T
        share_NP = (near_NP / self.log_scale.exp()).softmax(1) - 1 / PROTOTYPES
        height_N = (share_NP * near_NP.sigmoid()) @ self.weight + self.bias
        return LEAST + (MOST - LEAST) * height_N.sigmoid()


class Temperatures(nn.Module):
    """Networks of images and of texts, and (R,) the log of each row's running mean."""

    log_image: Tensor
    log_text: Tensor

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        self.image, self.text = Temperature(width), Temperature(width)
        for name in ("log_image", "log_text"):
            self.register_buffer(name, torch.full((samples,), -torch.inf))


def state(*, samples: int, width: int, seed: int, settings: Mapping[str, Any]) -> Temperatures:
    return Temperatures(samples, width)
