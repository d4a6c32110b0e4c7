"""`nano`: two small towers of our own, for minutes on one processor core.

Weights are float32; the convolutions and linear maps compute in the type of their input, so that
bfloat16 inputs train bfloat16 copies of float32 masters.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor, nn

from clipmill.stages.clip.towers import FIRST_SCALE, Reads, Towers
from clipmill.stages.ops.images.squares import square

# Shapes: N images or texts, H x W pixels, C channels, T tokens of all texts, D = width.

Size = Annotated[int, Meta(ge=1, le=1 << 24)]  # bounded: a card may be untrusted


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The settings of a model of this family."""

    image_size: Annotated[int, Meta(ge=1, le=4096)]  # pixels a side
    # of each residual block; multiples of 8, as oneDNN 3.12 on AVX2 writes past the gradient of a
    # 1 x 1 convolution with stride 2 and other widths
    channels: tuple[Size, ...]
    strides: tuple[Size, ...]
    buckets: Size  # of the token hash
    tokens: Size  # cap on tokens of a text
    bag_width: Size  # of a token's vector
    hidden: Size  # of the text tower's middle layer
    width: Size  # of the embedding


NANO = Architecture(
    image_size=48,
    channels=(24, 48, 96, 192),
    strides=(1, 2, 2, 2),
    buckets=32_768,
    tokens=48,
    bag_width=256,
    hidden=512,
    width=128,
)
ARCHITECTURES = {"nano": NANO}


def reads(name: str, context: int | None) -> Reads:
    return reads_of(ARCHITECTURES[name])


def versions(name: str) -> list[str]:
    return []


def build(name: str, context: int | None, scale: float | None, bias: float | None) -> "Nano":
    return Nano(ARCHITECTURES[name], scale, bias)


def rebuilt(facts: Mapping[str, Any]) -> "Nano":
    stored = asdict(Architecture(**facts["architecture"]))  # JSON's lists become tuples
    return Nano(msgspec.convert(stored, Architecture), bias=facts.get("bias") and 0.0)


def reads_of(a: Architecture) -> Reads:
    """Returns the input of a model: whole pictures on white, and bags of hashed words."""
    return Reads(
        image_size=a.image_size,
        tokenize=partial(token_bags, buckets=a.buckets, most=a.tokens),
        prepare=partial(square, size=a.image_size),
    )


class Nano(Towers):
    """An image tower and a text tower, and the scale of their cosines."""

    def __init__(
        self, architecture: Architecture, scale: float | None = None, bias: float | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.reads, self.width = reads_of(architecture), architecture.width
        self.image = ImageTower(architecture)
        self.text = TextTower(architecture)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale or FIRST_SCALE)))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    @property
    def facts(self) -> Mapping[str, Any]:  # type: ignore[override]  # read, never set
        bias = {} if self.bias is None else {"bias": True}
        return {"architecture": asdict(self.architecture), **bias}

    def embed_images(self, pixels_N3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (N, D) unit vectors of 8-bit RGB."""
        image_N3HW = pixels_N3HW.to(memory_format=torch.channels_last).to(dtype)
        return nn.functional.normalize(
            self.image(image_N3HW / 127.5 - 1).to(torch.promote_types(dtype, torch.float32)), dim=1
        )

    def embed_texts(
        self, token_T: Tensor, starts_N: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Returns (N, D) unit vectors of the bags that begin at `starts_N`."""
        return nn.functional.normalize(
            self.text(token_T, starts_N, dtype).to(torch.promote_types(dtype, torch.float32)), dim=1
        )


class ImageTower(nn.Module):
    """A 4 x 4 convolution of stride 2, residual blocks, the mean over positions, a linear map."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.stem = Conv(3, a.channels[0], 4, stride=2, padding=1, bias=False)
        inputs = (a.channels[0], *a.channels[:-1])
        self.blocks = nn.Sequential(
            *(Block(*sizes) for sizes in zip(inputs, a.channels, a.strides, strict=True))
        )
        self.head = Linear(a.channels[-1], a.width)

    def forward(self, image_N3HW: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image_N3HW)).mean(dim=(2, 3)))


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; untrained, it is the shortcut alone.

    Source: the basic block of ResNet (He et al. 2016), last norm at zero (Goyal et al. 2017).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = Conv(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(Conv(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = nn.functional.relu(self.norm1(self.conv1(x_NCHW)))
        return nn.functional.relu(self.norm2(self.conv2(y_NCHW)) + self.shortcut(x_NCHW))


class TextTower(nn.Module):
    """Two layers over the sum of a bag's token vectors, divided by the root of their number."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(a.buckets, a.bag_width, mode="sum")
        nn.init.normal_(self.bag.weight, std=0.02)
        self.norm = nn.LayerNorm(a.bag_width)
        self.layers = nn.Sequential(
            Linear(a.bag_width, a.hidden), nn.GELU(), Linear(a.hidden, a.width)
        )

    def forward(self, token_T: Tensor, starts_N: Tensor, dtype: torch.dtype) -> Tensor:
        end = starts_N.new_tensor([len(token_T)])
        count_N = torch.diff(starts_N, append=end).clamp(min=1)  # an empty bag stays zero
        bag_ND = self.bag(token_T, starts_N) / count_N.sqrt()[:, None]
        return self.layers(self.norm(bag_ND).to(dtype))


class Linear(nn.Linear):
    """A linear map that computes in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Conv(nn.Conv2d):
    """A convolution without a bias that computes in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None)


GRAM = 4  # characters
WORD = re.compile(r"\w+")


def token_bags(
    texts: Sequence[str], buckets: int, most: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Returns (T,) the bucket of every token, and (N + 1,) the first token of each text.

    A text has at most `most` tokens. Words come before their 4-grams, so that a long caption loses
    4-grams first. A text without a word has an empty bag.
    """
    bags = [_tokens(text)[:most] for text in texts]  # lengths differ
    ends_N = np.cumsum([0, *map(len, bags)], dtype=np.int64)
    hash_T = np.fromiter(chain.from_iterable(bags), np.uint32, count=int(ends_N[-1]))
    return (hash_T % np.uint32(buckets)).astype(np.int32), ends_N


def _tokens(text: str) -> list[int]:
    words = WORD.findall(text.casefold())
    hashed = [_hashes(word) for word in words]
    return [word for word, *_ in hashed] + [gram for _, *grams in hashed for gram in grams]


@lru_cache(1 << 16)  # captions share most of their words
def _hashes(word: str) -> tuple[int, ...]:
    """Returns hashes of the word and its 4-grams, ends marked: `<star>` has <sta, star, tar>."""
    marked = f"<{word}>"
    grams = (marked[i : i + GRAM] for i in range(len(marked) - GRAM + 1))
    return tuple(zlib.crc32(token.encode("utf-8", "replace")) for token in (f" {word}", *grams))
