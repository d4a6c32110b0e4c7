"""Builds a model of images and texts by its name, or from its card.

`nano` is our own (nano.py); any other name, or a .json file, is a network of open_clip's.
"""

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import msgspec
import torch

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
    from clipmill.stages.clip import nano

    model: Towers
    bits = int.from_bytes(blake2b(f"{seed} weights".encode(), digest_size=8).digest(), "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        if name in nano.ARCHITECTURES:
            model = nano.Nano(nano.ARCHITECTURES[name], scale, bias)
        else:
            from clipmill.stages.clip import open_clip_config, open_clip_towers

            config = open_clip_config.config_of(name, context=context)
            model = open_clip_towers.OpenClipTowers(name, config, scale, bias)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's


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

    stored = asdict(nano.Architecture(**facts["architecture"]))  # JSON's lists become tuples
    model = nano.Nano(msgspec.convert(stored, nano.Architecture), bias=facts.get("bias") and 0.0)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's
