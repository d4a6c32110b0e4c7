"""open_clip's networks by name, or by a JSON file like its own: what they are, without torch."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipmill.metadata.limits import UNPARSED
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.extras import missing

DROPS = ("timm_drop", "timm_drop_path", "patch_dropout")  # shares of an image tower left to chance


def installed(where: str = "key `model`") -> Path:
    """The folder of open_clip's own configurations; RecipeError where it is not installed."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise missing("open_clip", where)
    return Path(spec.submodule_search_locations[0], "model_configs")


def config_of(model: str, where: str = "key `model`") -> dict[str, Any]:
    """The sections `embed_dim`, `vision_cfg`, `text_cfg` and more that a network is built from.

    RecipeError where open_clip is not installed, knows no such network, or the file is none.
    """
    folder = installed(where)
    file = Path(model).expanduser() if model.endswith(".json") else folder / f"{model}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(path.stem for path in folder.glob("*.json"))
        is_file = model.endswith(".json")
        found = f"no such file: {file}" if is_file else f"open_clip has no network {model!r}"
        raise RecipeError(found, where, did_you_mean(model, known, "it has")) from None
    except UNPARSED as error:
        raise RecipeError(f"no JSON: {error}", f"{where}: {file}", "mend the file") from None
    config = config.get("model_cfg", config)  # of an open_clip_config.json
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise RecipeError(
            f"no network of open_clip's: {', '.join(sorted(missing))} missing",
            f"{where}: {file}",
            "write the sections that open_clip's own model_configs have",
        )
    return dict(config)


def check_trainable(model: str, config: dict[str, Any]) -> None:
    """RecipeError where a network cannot be trained here: it has a decoder, comes from a hub, or
    drops parts of itself by chance, which no killed training could do again."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    size = vision.get("image_size", 224)
    found = None
    if "multimodal_cfg" in config:
        found = "it has a captioning decoder, which has a loss of its own"
    elif "hf_model_name" in text:
        found = "its text tower comes from a hub"
    elif "hf_tokenizer_name" in text or "siglip" in model.lower():
        found = "its tokenizer comes from a hub"
    elif not isinstance(size, int):
        found = f"its pictures are {size}, not square"
    elif ":" in (vision.get("timm_model_name") or ""):
        found = "its image tower comes from a hub"
    elif drops := [name for name in DROPS if vision.get(name)]:
        found = f"it drops parts of itself by chance ({drops[0]} is {vision[drops[0]]})"
    if found:
        do = (
            "name one with towers of open_clip's or timm's and its own tokenizer, as ViT-B-32, or"
            " a JSON file of its configuration without that"
        )
        raise RecipeError(f"{model!r} is not trained here: {found}", "key `model`", do)
