"""The interface between the trainer and a model of images and texts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Shapes: N images or texts, H x W pixels, S pixels a side, T tokens of all texts, D = width.

Pixels = NDArray[np.uint8]
# (T,) tokens of all texts, and (N + 1,) the first token of each
Tokens = tuple[NDArray[np.int32], NDArray[np.int64]]
Tokenize = Callable[[Sequence[str]], Tokens]
FIRST_SCALE, MAX_LOG_SCALE = 1 / 0.07, math.log(100)  # of all cosines
NO_DECAY = ("bn", "ln", "bias", "logit_scale")


@dataclass(frozen=True)
class Reads:
    """The input that a model takes, known without its weights; pickles, for workers."""

    image_size: int  # pixels a side
    tokenize: Tokenize  # without padding
    prepare: Callable[[Pixels], Pixels]  # (H, W, 3) to (S, S, 3), as in evaluation


class Towers(nn.Module, ABC):
    """A model of images and texts in one space; the base of every family of towers."""

    reads: Reads
    width: int  # D
    log_scale: nn.Parameter  # of the factor of all cosines
    bias: nn.Parameter | None  # added to all logits; None if the loss has no bias
    facts: Mapping[str, Any]  # of the card, from which `rebuilt` builds these towers again

    @property
    def image_size(self) -> int:
        return self.reads.image_size

    @property
    def network(self) -> nn.Module:
        """The module whose weights are stored."""
        return self

    @property
    def scale(self) -> Tensor:
        """The factor of all cosines, 1 to 100; at either end it still learns."""
        return self.log_scale.clamp(0, MAX_LOG_SCALE).exp()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Returns (T,) tokens of all texts, and (N + 1,) the first token of each."""
        return self.reads.tokenize(texts)

    @abstractmethod
    def embed_images(self, pixels_N3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (N, D) unit float32 vectors of 8-bit RGB; the towers compute in `dtype`."""

    @abstractmethod
    def embed_texts(
        self, token_T: Tensor, starts_N: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Returns (N, D) unit float32 vectors of the texts that begin at `starts_N`."""


def matrices_first(model: nn.Module) -> tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]]:
    """Returns the weights that decay, and those that do not: norms, biases and the scale.

    Source: open_clip's trainer when DataComp used it, and in 3.3: weights of two axes or more decay
    unless bn, ln, bias or logit_scale is in their name. In nano these are all matrices.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        stays = weight.ndim < 2 or any(part in name for part in NO_DECAY)
        (rest if stays else decay).append(weight)
    return decay, rest
