"""Builds a model of images and texts by its name, or from its card.

`nano` is our own; any other name, or a .json file, is a network of open_clip's. Each of the two is
a file stages/towers/NAME.py with four functions:

    reads(name, context)                returns its input
    versions(name)                      returns name and version of the packages beside torch that
                                        define its weights
    build(name, context, scale, bias)   returns it, with weights by torch's generator
    rebuilt(facts)                      returns what a card describes, its weights still to be
                                        loaded; an error of Python or torch if it cannot
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch

from clipmill.pipeline import own_code
from clipmill.stages.clip import open_clip_config
from clipmill.stages.clip.towers import Reads, Towers

Initial = float | None  # a loss's first scale or bias; None for the model's
KEY = "key `model`"


def _family(name: str) -> Any:
    nano = own_code.load("towers.nano", KEY)
    return nano if name in nano.ARCHITECTURES else _open_clip(KEY)


def _open_clip(where: str) -> Any:
    open_clip_config.installed(where)
    return own_code.load("towers.open_clip", where)


def reads(name: str, context: int | None = None) -> Reads:
    """Returns the input that the named model takes; `context` has the tokens of a text, if set."""
    return _family(name).reads(name, context)


def versions_of(name: str) -> list[str]:
    """Returns name and version of the packages beside torch that define a model's weights."""
    return _family(name).versions(name)


def new_model(
    name: str, seed: int, context: int | None = None, *, scale: Initial = None, bias: Initial = None
) -> Towers:
    """Returns an untrained model; its towers depend on its name, the seed and torch alone.

    `scale` and `bias` are a loss's initial values for the logits; the default scale is CLIP's.
    """
    bits = int.from_bytes(blake2b(f"{seed} weights".encode(), digest_size=8).digest(), "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        model = _family(name).build(name, context, scale, bias)
    return model.to(memory_format=torch.channels_last)


def rebuilt(facts: Mapping[str, Any]) -> Towers:
    """Builds the towers that a card describes; their weights are still to be loaded.

    Raises an error of Python or torch if this version cannot build them.
    """
    is_nano = "open_clip" not in facts
    family = _family("nano") if is_nano else _open_clip("a model of open_clip's")
    return family.rebuilt(facts).to(memory_format=torch.channels_last)
