"""A data filtering network: two linear heads that bring frozen features into one space.

Source: Data Filtering Networks (Fang et al. 2023): the filter is trained on little but trusted
data. We depart in size: heads on frozen features instead of CLIP, so that a CPU trains it.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from metadata.keys import redacted
from stages.clip.losses import FIRST_SCALE, MAX_SCALE
from stages.models.features import in_batches
from stages.models.saved import matching, read_model

# Shapes: N rows of the batch, D width of the embedding, I and T widths of image and text features.

KIND = "filter_network"
DROPOUT = 0.5
ROWS = 64  # a batch when embedding: one shape, so that no value depends on the others


class FilterNetwork(nn.Module):
    """Unit vectors of image and text features: a dropout and a linear map each.

    A hidden layer does worse on few pairs: of 2,000 in the demo's trusted slice, a fifth held out,
    an own caption beats another's in 94.9% with these heads, in 94.2% with 512 hidden units.
    """

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(image_width, width))
        self.text = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(text_width, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def embed_images(self, image_NI: Tensor) -> Tensor:
        return functional.normalize(self.image(image_NI), dim=1)

    def embed_texts(self, text_NT: Tensor) -> Tensor:
        return functional.normalize(self.text(text_NT), dim=1)

    def scale(self) -> Tensor:
        return self.log_scale.clamp(max=math.log(MAX_SCALE)).exp()


def shared_target_loss(image_ND: Tensor, text_ND: Tensor, scale: Tensor, target_NN: Tensor):
    """InfoNCE, both directions' mean, against targets whose rows and columns sum to one."""
    logit_NN = scale * image_ND @ text_ND.T
    by_image = -(target_NN * functional.log_softmax(logit_NN, 1)).sum(1).mean()
    by_text = -(target_NN * functional.log_softmax(logit_NN, 0)).sum(0).mean()
    return (by_image + by_text) / 2


def shared_targets(caption_N: Tensor) -> Tensor:
    """(N, N) targets of each row: equal shares for all rows of its caption, which are all right."""
    same_NN = (caption_N[:, None] == caption_N[None]).float()
    return same_NN / same_NN.sum(1, keepdim=True)


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


def steps(
    network: FilterNetwork,
    image_NI: Tensor,
    text_NT: Tensor,
    caption_N: Tensor,
    batches: Iterator[NDArray[np.int64]],
    seeds: Iterator[int],
    learning_rate: float,
    weight_decay: float,
) -> Iterator[tuple[float, float]]:
    """Trains on each batch of row numbers in turn; loss and scale of every step, as it is done."""
    matrices = [it for it in network.parameters() if it.ndim >= 2]
    others = [it for it in network.parameters() if it.ndim < 2]  # biases and the scale: no decay
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0}],
        lr=learning_rate,
    )
    network.train()
    for batch_N, seed in zip(batches, seeds, strict=True):
        torch.manual_seed(seed)  # dropout's coins: of the step, not of those before it
        row_N = torch.from_numpy(batch_N)
        loss = shared_target_loss(
            network.embed_images(image_NI[row_N]),
            network.embed_texts(text_NT[row_N]),
            network.scale(),
            shared_targets(caption_N[row_N]),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item(), network.scale().item()
    network.eval()
