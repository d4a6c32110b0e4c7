"""Reads the configuration of open_clip's networks, by name or from a JSON file like its own."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.extras import missing

PARTS = {"embed_dim": int, "text_cfg": dict, "vision_cfg": dict}  # of every configuration
DROPS = ("timm_drop", "timm_drop_path", "patch_dropout")  # random dropout of an image tower


def installed(where: str = "key `model`") -> Path:
    """Returns the folder of open_clip's configurations; raises RecipeError if not installed."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise missing("open_clip", where)
    return Path(spec.submodule_search_locations[0], "model_configs")


def config_of(model: str, where: str = "key `model`", context: int | None = None) -> dict[str, Any]:
    """Returns a network's configuration: `embed_dim`, `vision_cfg`, `text_cfg` and more.

    `context` is the tokens of a text; None for the network's own.

    Raises RecipeError if open_clip is not installed, has no such network, or the file has none.
    """
    folder = installed(where)
    file = Path(model).expanduser() if model.endswith(".json") else folder / f"{model}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        known = sorted(path.stem for path in folder.glob("*.json"))
        is_file = model.endswith(".json")
        found = f"no such file: {file}" if is_file else f"open_clip has no network {model!r}"
        raise RecipeError(found, where, did_you_mean(model, known, "it has")) from None
    except PARSE_ERRORS as error:
        raise RecipeError(f"no JSON: {error}", f"{where}: {file}", "mend the file") from None
    if isinstance(config, dict):
        config = config.get("model_cfg", config)  # of an open_clip_config.json
    held = config if isinstance(config, dict) else {}
    if missing := [name for name, kind in PARTS.items() if not isinstance(held.get(name), kind)]:
        found = f"no network of open_clip's: {', '.join(missing)} missing"
        do = "write the sections that open_clip's own model_configs have"
        raise RecipeError(found, f"{where}: {file}", do)
    own = {} if context is None else {"context_length": context}
    return {**held, "text_cfg": {**held["text_cfg"], **own}}


def check_trainable(model: str, config: dict[str, Any]) -> None:
    """Refuses a network that cannot be trained here, by RecipeError: with a decoder, parts from a
    hub, or random dropout, which a resumed training could not repeat."""
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
        do = "name one with towers of open_clip's or timm's and its own tokenizer, as ViT-B-32, or"
        do += " a JSON file of its configuration without that"
        raise RecipeError(f"{model!r} is not trained here: {found}", "key `model`", do)


def check_patches(model: str) -> None:
    """Refuses a network whose image tower is no ViT of open_clip's, by RecipeError."""
    vision = config_of(model)["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision.get("layers", 12), int):
        do = "leave it out, or take a network whose image tower is a ViT of open_clip's"
        raise RecipeError("an image tower without patches", "key `patch_dropout`", do)
