"""Builds a model of images and texts by its name, or from its card.

`nano` is our own (nano.py); any other name, or a .json file, is a network of open_clip's.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import msgspec
import torch
from torch import nn

from clipmill.stages.clip.towers import Reads, Towers

Initial = float | None  # a loss's first scale or bias; None for the model's


def reads(name: str, context: int | None = None) -> Reads:
    """Returns the input that the named model takes; `context` has the tokens of a text, if set."""
    from clipmill.stages.clip import nano

    if name in nano.ARCHITECTURES:
        return nano.reads(nano.ARCHITECTURES[name])
    from clipmill.stages.clip import open_clip_config

    config = open_clip_config.config_of(name, context=context)
    open_clip_config.check_trainable(name, config)
    from clipmill.stages.clip import open_clip_towers

    return open_clip_towers.reads(config)


def versions_of(name: str) -> list[str]:
    """Returns name and version of the packages beside torch that define a model's weights."""
    from clipmill.stages.clip import nano

    if name in nano.ARCHITECTURES:
        return []
    from clipmill.stages.clip import open_clip_config

    is_timm = "timm_model_name" in open_clip_config.config_of(name)["vision_cfg"]
    packages = ["open_clip_torch", *(["timm"] if is_timm else [])]
    return [f"{package} {version(package)}" for package in packages]


def new_model(
    name: str, seed: int, context: int | None = None, *, scale: Initial = None, bias: Initial = None
) -> Towers:
    """Returns an untrained model; its towers depend on its name, the seed and torch alone.

    `scale` and `bias` are a loss's initial values for the logits; the default scale is CLIP's.
    """
    bits = int.from_bytes(blake2b(f"{seed} weights".encode(), digest_size=8).digest(), "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        model = _built(name, context, scale, bias)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's


def _built(name: str, context: int | None, scale: Initial, bias: Initial) -> Towers:
    from clipmill.stages.clip import nano

    if name not in nano.ARCHITECTURES:
        from clipmill.stages.clip import open_clip_config, open_clip_towers

        config = open_clip_config.config_of(name, context=context)
        return open_clip_towers.OpenClipTowers(name, config, scale, bias)
    model = nano.Nano(nano.ARCHITECTURES[name])
    if scale is not None:
        model.log_scale.data.fill_(math.log(scale))
    if bias is not None:
        model.bias = nn.Parameter(torch.tensor(bias))
    return model


def rebuilt(facts: Mapping[str, Any]) -> Towers:
    """Builds the towers that a card describes; their weights are still to be loaded.

    Raises an error of Python or torch if this version cannot build them.
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
