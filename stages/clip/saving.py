"""Stores a training's state, and its model with README.md and open_clip_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from clipmill.pipeline.dataset import Checkpoints, Put
from clipmill.stages.models.saved import CLIP, WEIGHTS, put_model

if TYPE_CHECKING:
    from clipmill.stages.clip.loop import Trainer
    from clipmill.stages.clip.towers import Towers

LOADED = "model = open_clip.create_model"
FOLDER = "FOLDER is this one; for one of several seeds, a copy of its files named without `seed-N.`"
LABELS = {
    "scale": "scale",
    "seed": "seed",
    "batch_size": "batch size",
    "rows": "rows learnt from",
    "data": "digest of the export",
    "mask": "digest of the rows chosen",
    "loss": "loss",
    "start": "digest of the weights it starts from",
}


def save(model: "Towers", facts: Mapping[str, Any], put: Put, scratch: Path) -> None:
    """Stores a model: its weights, then the card that rebuilds it."""
    card = {**model.facts, **facts}
    for name, text in card_files(card).items():
        path = scratch / name
        path.write_text(text, encoding="utf-8")
        put(name, path)
    put_model(put, scratch, CLIP, card, model.network.state_dict())


def card_files(card: Mapping[str, Any]) -> dict[str, str]:
    """Returns texts by file name; open_clip's networks get a configuration for its loader."""
    files = {"README.md": _readme(card)}
    if "open_clip" in card:
        import open_clip

        picture = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
        config = {"model_cfg": card["open_clip"], "preprocess_cfg": picture}
        files["open_clip_config.json"] = json.dumps(config, indent=1) + "\n"
    return files


def _readme(card: Mapping[str, Any]) -> str:
    name = card.get("model", "nano")
    rows = [(label, card[key]) for key, label in LABELS.items() if key in card]
    rows += [(key.replace("_", " "), value) for key, value in card.get("plan", {}).items()]
    if "replaced" in card:
        count = sum(card["replaced"].values())
        rows.append(("samples that another picture stood in for, as theirs does not decode", count))
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    way = "open_clip has no such network; clipmill has."
    if "open_clip" in card:
        lines = ["import open_clip", "", f"# {FOLDER}", f'{LOADED}("local-dir:FOLDER")']
        if not name.endswith(".json"):  # open_clip has no name for a JSON file's network
            lines.append(f'{LOADED}("{name}", pretrained="FOLDER/{WEIGHTS}")')
        way = "\n".join(["```python", *lines, "```"])
    return f"""# A CLIP model trained by clipmill: {name}

| trained on, and how | |
|---|---|
{table}

{way}

In a recipe of clipmill: `model: "checkpoint:FOLDER"`.
"""


def store(trainer: "Trainer", checkpoints: Checkpoints, scratch: Path) -> None:
    """Stores a checkpoint: all that the next step depends on."""
    path = scratch / "state.safetensors"
    state = {name: value.detach().contiguous() for name, value in trainer.state().items()}
    safetensors.torch.save_file(state, path)
    checkpoints.put(trainer.step, path)


def restore(trainer: "Trainer", checkpoints: Checkpoints) -> None:
    """Sets the trainer to its newest whole checkpoint, if there is one."""
    if (newest := checkpoints.newest()) is not None:
        _, path = newest
        trainer.restore(safetensors.torch.load_file(path))
        path.unlink()
