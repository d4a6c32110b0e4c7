"""Builds the towers of open_clip's networks, with its tokenizer, preprocessing and initial weights.

The state dict of `network` is open_clip's own, so that its loader reads the stored weights.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from clipmill.stages.clip.open_clip_config import check_trainable, config_of
from clipmill.stages.clip.towers import Pixels, Reads, Tokens, Towers
from clipmill.stages.towers._open_clip import encode_short, is_causal, middle

# Shapes: N images or texts, H x W pixels, T tokens of all texts, L of the longest, D = width.

CONTEXT = 77
PAD = 0
NOT_PIXELS = ("ToTensor", "MaybeToTensor", "Normalize")  # of open_clip's preprocessing
MOST = {"layers": 1000, "image_size": 4096}


def reads(name: str, context: int | None) -> Reads:
    config = config_of(name, context=context)
    check_trainable(name, config)
    return reads_of(config)


def versions(name: str) -> list[str]:
    is_timm = "timm_model_name" in config_of(name)["vision_cfg"]
    packages = ["open_clip_torch", *(["timm"] if is_timm else [])]
    return [f"{package} {version(package)}" for package in packages]


def build(
    name: str, context: int | None, scale: float | None, bias: float | None
) -> "OpenClipTowers":
    return OpenClipTowers(name, config_of(name, context=context), scale, bias)


def reads_of(config: Mapping[str, Any]) -> Reads:
    """Returns a network's input: the centre of each picture, and byte pairs between two marks."""
    text, size = config["text_cfg"], config["vision_cfg"].get("image_size", 224)
    keywords = json.dumps(text.get("tokenizer_kwargs") or {}, sort_keys=True)
    return Reads(
        image_size=size,
        tokenize=BytePairs(text.get("context_length", CONTEXT), keywords),
        prepare=Middle(size),
    )


@dataclass(frozen=True)
class BytePairs:
    """open_clip's tokenizer, without its padding."""

    context: int
    keywords: str  # JSON

    def __call__(self, texts: Sequence[str]) -> Tokens:
        token_NL = _tokenizer(self.context, self.keywords)(list(texts)).numpy()
        # The end mark is the last token that is no pad; inside a text the pad's number is a `!`.
        length_N = token_NL.shape[1] - (token_NL[:, ::-1] != PAD).argmax(axis=1)
        is_text_NL = np.arange(token_NL.shape[1]) < length_N[:, None]
        return token_NL[is_text_NL].astype(np.int32), np.cumsum([0, *length_N], dtype=np.int64)


@lru_cache(4)
def _tokenizer(context: int, keywords: str) -> Any:
    return open_clip.SimpleTokenizer(context_length=context, **json.loads(keywords))


@dataclass(frozen=True)
class Middle:
    """open_clip's preprocessing up to 8-bit pixels: shorter side to the size, centre crop."""

    size: int

    def __call__(self, image_HW3: Pixels) -> Pixels:
        picture = Image.fromarray(middle(image_HW3))  # scaled whole, a sliver could fill the memory
        for step in _steps(self.size):
            picture = step(picture)
        return np.array(picture)


@lru_cache(4)
def _steps(size: int) -> list[Any]:
    whole = open_clip.image_transform(size, is_train=False)
    return [step for step in whole.transforms if type(step).__name__ not in NOT_PIXELS]


class OpenClipTowers(Towers):
    """A network of open_clip's; below float32 it computes by autocast, as its own trainer."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, config: Mapping[str, Any], scale: float | None, bias: float | None
    ) -> None:
        super().__init__()
        check_trainable(name, dict(config))
        self.name, self.config = name, {**config, "init_logit_bias": bias}
        if scale is not None:
            self.config["init_logit_scale"] = float(np.log(scale))
        settings = copy.deepcopy(self.config)
        settings["vision_cfg"]["timm_model_pretrained"] = False
        custom = settings.pop("custom_text", False)
        self.clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
        self.is_causal = is_causal(self.clip)
        self.reads, self.width = reads_of(config), config["embed_dim"]
        both = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in both)
        self.register_buffer("mean", 255 * mean, persistent=False)
        self.register_buffer("std", 255 * std, persistent=False)

    @property
    def network(self) -> nn.Module:
        return self.clip

    @property
    def log_scale(self) -> nn.Parameter:  # type: ignore[override]  # the network's own
        return self.clip.logit_scale

    @property
    def bias(self) -> nn.Parameter | None:  # type: ignore[override]  # the network's own
        return self.clip.logit_bias

    @property
    def facts(self) -> Mapping[str, Any]:  # type: ignore[override]  # read, never set
        return {"model": self.name, "open_clip": self.config}

    def embed_images(self, pixels_N3HW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        image_N3HW = (pixels_N3HW.float() - self.mean) / self.std
        with _cast(pixels_N3HW, dtype):
            image_ND = self.clip.encode_image(image_N3HW)
        return nn.functional.normalize(image_ND.float(), dim=-1)

    def embed_texts(
        self, token_T: Tensor, starts_N: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        token_NL = self.padded(token_T, starts_N)
        with _cast(token_T, dtype):
            if self.is_causal:
                text_ND = encode_short(self.clip, token_NL)
            else:
                text_ND = self.clip.encode_text(token_NL)
        return nn.functional.normalize(text_ND.float(), dim=-1)

    def padded(self, token_T: Tensor, starts_N: Tensor) -> Tensor:
        """Returns (N, L) padded tokens.

        L is the longest text's length if padding cannot change an embedding, else the context.
        """
        length_N = torch.diff(starts_N, append=starts_N.new_tensor([len(token_T)]))
        context = self.config["text_cfg"].get("context_length", CONTEXT)
        longest = int(length_N.max()) if self.is_causal else context
        token_NL = token_T.new_full((len(starts_N), longest), PAD, dtype=torch.long)
        within_NL = torch.arange(longest, device=token_T.device) < length_N[:, None]
        token_NL[within_NL] = token_T.long()
        return token_NL


def _cast(like: Tensor, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(like.device.type, dtype=dtype, enabled=dtype != torch.float32)


def rebuilt(facts: Mapping[str, Any]) -> OpenClipTowers:
    """Builds the network that a card describes; raises ValueError if it is too large."""
    config = dict(facts["open_clip"])
    for part in (config.get("vision_cfg", {}), config.get("text_cfg", {})):  # may be untrusted
        for name, most in MOST.items():
            if any(number > most for number in np.ravel(part.get(name, 0))):
                raise ValueError(f"more than {most:,} {name}")
    return OpenClipTowers(facts["model"], config, None, config.get("init_logit_bias"))
