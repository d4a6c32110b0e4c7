"""A data filtering network: two linear heads that bring frozen features into one space.

Source: Data Filtering Networks (Fang et al. 2023). We depart in size and in the fit: heads on
frozen features instead of CLIP, found in one step by canonical correlation (Hotelling 1936) with a
ridge (Vinod 1976), so that a CPU learns in seconds from all pairs there are.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from metadata.keys import redacted
from stages.models.features import in_batches
from stages.models.saved import matching, read_model

# Shapes: N rows, D width of the embedding, I and T widths of image and text features, B a batch, R
# directions.

KIND = "filter_network"
# Times the mean variance of a feature, added to that of each. Where pairs are few it is more, else
# those that do not fit are learnt by heart: of 2,400 rows, 400 of a strange vendor, swapped ones
# among these have an AUC of .70 with ridges of 10 and 3, of .65 with 3 and 1. With all rows of the
# demo or full pool it matters little.
IMAGE_RIDGE, TEXT_RIDGE = 3.0, 1.0
FEW = 5_000  # pairs with which the ridge is twice that
ROWS = 64  # a batch when embedding: one shape, so that no value depends on the others
SUMMED = 4096  # rows in float64 at a time


class FilterNetwork(nn.Module):
    """Unit vectors of image and text features by a linear map each."""

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, width)
        self.text = nn.Linear(text_width, width)

    def embed_images(self, image_NI: Tensor) -> Tensor:
        return functional.normalize(self.image(image_NI), dim=1)

    def embed_texts(self, text_NT: Tensor) -> Tensor:
        return functional.normalize(self.text(text_NT), dim=1)


def fitted(
    image_NI: NDArray[np.float32], text_NT: NDArray[np.float32], width: int
) -> FilterNetwork:
    """The network whose directions correlate most over these pairs; ValueError where none vary.

    A pair of directions weighs as its correlation does. Pairs that do not fit cost little: a
    caption that stands beside pictures of all kinds correlates with none.
    """
    mean_I, mean_T = (it.mean(0, dtype=np.float64) for it in (image_NI, text_NT))
    image_II, text_TT, both_IT = (
        torch.zeros(size, dtype=torch.float64)
        for size in ((len(mean_I),) * 2, (len(mean_T),) * 2, (len(mean_I), len(mean_T)))
    )
    for start in range(0, len(image_NI), SUMMED):
        image_BI, text_BT = (
            torch.from_numpy(it[start : start + SUMMED] - mean)
            for it, mean in ((image_NI, mean_I), (text_NT, mean_T))
        )
        image_II += image_BI.T @ image_BI
        text_TT += text_BT.T @ text_BT
        both_IT += image_BI.T @ text_BT
    image_II, text_TT = (
        _whitening(it / len(image_NI), ridge * (1 + FEW / len(image_NI)))
        for it, ridge in ((image_II, IMAGE_RIDGE), (text_TT, TEXT_RIDGE))
    )
    image_IR, correlation_R, text_RT = torch.linalg.svd(
        image_II.T @ (both_IT / len(image_NI)) @ text_TT, full_matrices=False
    )
    network = FilterNetwork(len(mean_I), len(mean_T), width)
    for head, mean, way_FR in (
        (network.image, mean_I, image_II @ image_IR),
        (network.text, mean_T, text_TT @ text_RT.T),
    ):
        weight_DF = (way_FR * correlation_R.sqrt()).T[:width]
        head.weight.data.zero_()[: len(weight_DF)] = weight_DF
        head.bias.data = -(head.weight.data.double() @ torch.from_numpy(mean)).float()
    return network.eval()


def _whitening(covariance_FF: Tensor, ridge: float) -> Tensor:
    """(F, F) what makes features uncorrelated, each with the variance that the ridge leaves."""
    variance_F, way_FF = torch.linalg.eigh(covariance_FF)
    least = ridge * variance_F.mean()
    if not least > 0:
        raise ValueError("the features of all rows are alike")
    return way_FF / (variance_F.clamp(min=0) + least).sqrt()


class Embedder:
    """A trained network, applied to columns of features; NaN in, NaN out."""

    def __init__(self, uri: str, device: str = "cpu", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        card, weights = read_model(uri, KIND)
        sizes: dict[str, Any] = {
            name: card.get(name) for name in ("image_width", "text_width", "width")
        }
        self.width: int = sizes["width"]
        self.sha256: str = card["sha256"]
        self.device = device
        if "log_scale" in weights:  # of version 1, which learnt by steps
            del weights["log_scale"]
            weights = {name.replace(".1.", "."): it for name, it in weights.items()}
        self.network = matching(FilterNetwork(**sizes), weights, redacted(uri)).to(device)

    def embed_images(self, image_NI: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._embed(self.network.embed_images, image_NI)

    def embed_texts(self, text_NT: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._embed(self.network.embed_texts, text_NT)

    def _embed(self, head, row_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        def call(row_BF: NDArray[np.float32]) -> Tensor:
            with torch.inference_mode():
                return head(torch.tensor(row_BF, device=self.device))

        return in_batches(call, row_NF, ROWS, self.width)
