"""README.md and open_clip_config.json beside a trained model: what it is, and how to load it."""

import json
from collections.abc import Mapping
from typing import Any

from clipmill.stages.models.saved import WEIGHTS

LOADED = "model = open_clip.create_model"
FOLDER = "FOLDER is this one; of one seed of several, a copy without `seed-N.` in its files' names"
LABELS = {
    "scale": "scale",
    "seed": "seed",
    "batch_size": "batch size",
    "rows": "rows learnt from",
    "data": "digest of the export",
    "mask": "digest of the rows chosen",
    "loss": "loss",
}


def beside(card: Mapping[str, Any]) -> dict[str, str]:
    """Texts by file; a network of open_clip's has its configuration too, for its own loader."""
    files = {"README.md": _readme(card)}
    if "open_clip" in card:
        from clipmill.stages.clip.open_clip_towers import PIXELS

        picture = dict(zip(("mean", "std"), PIXELS, strict=True))
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
        if not name.endswith(".json"):  # which open_clip knows by no name
            lines.append(f'{LOADED}("{name}", pretrained="FOLDER/{WEIGHTS}")')
        way = "\n".join(["```python", *lines, "```"])
    return f"""# A CLIP model trained by clipmill: {name}

| trained on, and how | |
|---|---|
{table}

{way}

In a recipe of clipmill: `model: "checkpoint:FOLDER"`.
"""
