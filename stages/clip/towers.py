"""What the trainer asks of a model of images and texts, and how one is built by its name.

`nano` is our own (nano.py); any other name, or a .json file, is a network of open_clip's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipmill.stages.clip.losses import MAX_SCALE

# Shapes: N images or texts, H x W pixels, S pixels a side, T tokens of all texts, D = width.

Pixels = NDArray[np.uint8]
Tokens = tuple[NDArray[np.int32], NDArray[np.int64]]
NO_DECAY = ("bn", "ln", "bias", "logit_scale")


@dataclass(frozen=True)
class Reads:
    """What a model takes, known without its weights; pickles, for workers that prepare it."""

    image_size: int  # pixels a side
    # (T,) and (N + 1,): text n is token_T[starts[n]:starts[n + 1]], and nothing is padded
    tokenize: Callable[[Sequence[str]], Tokens]
    prepare: Callable[[Pixels], Pixels]  # (H, W, 3) to (S, S, 3), as evaluation sees a picture


class Towers(nn.Module, ABC):
    """A model of images and texts in one space: what each family of towers has."""

    reads: Reads
    width: int  # D
    log_scale: nn.Parameter  # of the factor of all cosines
    bias: nn.Parameter | None  # added to all logits, where the loss wants one
    facts: Mapping[str, Any]  # from which `rebuilt` makes these towers again

    @property
    def image_size(self) -> int:
        return self.reads.image_size

    @property
    def network(self) -> nn.Module:
        """The module whose weights are stored."""
        return self

    @property
    def scale(self) -> Tensor:
        """The factor of all cosines, 1 to 100."""
        return self.log_scale.exp().clamp(1, MAX_SCALE)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """(T,) tokens of all texts, and (N + 1,) the first token of each."""
        return self.reads.tokenize(texts)

    @abstractmethod
    def embed_images(self, pixels_N3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, D) unit float32 vectors, of 8-bit RGB; the towers compute in a type."""

    @abstractmethod
    def embed_texts(
        self, token_T: Tensor, starts_N: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(N, D) unit float32 vectors, of texts that begin at `starts_N`."""


def reads(name: str) -> Reads:
    """What the model of a name takes."""
    from clipmill.stages.clip import nano

    if name in nano.ARCHITECTURES:
        return nano.reads(nano.ARCHITECTURES[name])
    from clipmill.stages.clip import open_clip_config

    config = open_clip_config.config_of(name)
    open_clip_config.check_trainable(name, config)
    from clipmill.stages.clip import open_clip_towers

    return open_clip_towers.reads(config)


def versions_of(name: str) -> list[str]:
    """Of the packages beside torch that the weights of a model's towers come from."""
    from clipmill.stages.clip import nano

    if name in nano.ARCHITECTURES:
        return []
    from clipmill.stages.clip import open_clip_config

    is_timm = "timm_model_name" in open_clip_config.config_of(name)["vision_cfg"]
    packages = ["open_clip_torch", *(["timm"] if is_timm else [])]
    return [f"{package} {version(package)}" for package in packages]


def new_model(
    name: str, seed: int, *, scale: float | None = None, bias: float | None = None
) -> Towers:
    """An untrained model: its towers depend on its name, the seed and torch alone.

    `scale` and `bias` are what a loss asks of the logits at the start; the scale is else CLIP's.
    """
    bits = int.from_bytes(blake2b(f"{seed} weights".encode(), digest_size=8).digest(), "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        model = _built(name, scale, bias)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's


def _built(name: str, scale: float | None, bias: float | None) -> Towers:
    from clipmill.stages.clip import nano

    if name not in nano.ARCHITECTURES:
        from clipmill.stages.clip import open_clip_towers

        return open_clip_towers.built(name, scale, bias)
    model = nano.Nano(nano.ARCHITECTURES[name])
    if scale is not None:
        model.log_scale.data.fill_(math.log(scale))
    if bias is not None:
        model.bias = nn.Parameter(torch.tensor(bias))
    return model


def rebuilt(facts: Mapping[str, Any]) -> Towers:
    """The towers that a card describes, with weights of no meaning.

    An error of Python's own, or torch's, where it describes none that this version knows.
    """
    if "open_clip" in facts:
        from clipmill.stages.clip import open_clip_config

        open_clip_config.installed("a model of open_clip's")
        from clipmill.stages.clip import open_clip_towers

        return open_clip_towers.rebuilt(facts)
    from clipmill.stages.clip import nano

    pairs = facts["architecture"].items()
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
    architecture = nano.Architecture(**settings)
    model = nano.Nano(msgspec.convert(asdict(architecture), nano.Architecture))
    if facts.get("bias"):
        model.bias = nn.Parameter(torch.zeros(()))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's


def matrices_first(model: nn.Module) -> tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]]:
    """The weights that decay, and the norms, biases and scale, which do not.

    Source: open_clip's trainer when DataComp used it, and in 3.3: what has two axes or more and no
    bn, ln, bias or logit_scale in its name. Of nano these are all matrices.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        kept = weight.ndim < 2 or any(part in name for part in NO_DECAY)
        (rest if kept else decay).append(weight)
    return decay, rest
