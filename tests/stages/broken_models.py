"""A stored model whose weights are spoilt in one of four ways, its digest mended."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DAMAGES = {
    "one NaN in a text matrix": ("text.layers.0.weight", torch.nan),
    "one inf in an image kernel": ("image.stem.weight", torch.inf),
    "all NaN": (None, torch.nan),
    "all zero": (None, 0.0),
}


def damaged(folder: Path, damage: str) -> Path:
    """The folder of a nano model, FOLDER/out, with spoilt weights."""
    file, card = folder / "out" / "model.safetensors", folder / "out" / "model.json"
    weights = load_file(file)
    name, value = DAMAGES[damage]
    for weight in [weights[name].view(-1)[:1]] if name else weights.values():
        if weight.is_floating_point():
            weight.fill_(value)
    save_file(weights, file)
    facts = json.loads(card.read_text())
    facts["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    card.write_text(json.dumps(facts))
    return folder
