"""Reads the configuration of open_clip's networks, by name or from a JSON file like its own."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.extras import missing

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: N texts, L tokens of one, W width of a layer, D of the embedding, H x W pixels.

MAX_ASPECT = 1000  # longer side to shorter; at a network's 224 pixels 200 MB
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
    except FileNotFoundError:
        known = sorted(path.stem for path in folder.glob("*.json"))
        is_file = model.endswith(".json")
        found = f"no such file: {file}" if is_file else f"open_clip has no network {model!r}"
        raise RecipeError(found, where, did_you_mean(model, known, "it has")) from None
    except PARSE_ERRORS as error:
        raise RecipeError(f"no JSON: {error}", f"{where}: {file}", "mend the file") from None
    config = config.get("model_cfg", config)  # of an open_clip_config.json
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        found = f"no network of open_clip's: {', '.join(sorted(missing))} missing"
        do = "write the sections that open_clip's own model_configs have"
        raise RecipeError(found, f"{where}: {file}", do)
    own = {} if context is None else {"context_length": context}
    return {**config, "text_cfg": {**config["text_cfg"], **own}}


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


def is_causal(model: Any) -> bool:
    """Returns whether padding after a text cannot change its embedding: the tower is open_clip's
    own, has a causal mask, and pools at the end-of-text token."""
    text = getattr(model, "text", model)
    own = all(hasattr(text, name) for name in ("attn_mask", "positional_embedding"))
    own = own and getattr(text, "cls_emb", None) is None  # CoCa reads its last token
    pool = getattr(text, "pool_type", getattr(model, "text_pool_type", ""))
    return own and text.attn_mask is not None and pool == "argmax"


def encode_short(model: Any, token_NL: "Tensor") -> "Tensor":
    """Returns (N, D), embeddings of texts shorter than the context, of a network that is_causal."""
    import torch

    if hasattr(model, "text"):  # this class takes any length
        return model.encode_text(token_NL)
    length = token_NL.shape[1]
    x_NLW = model.token_embedding(token_NL) + model.positional_embedding[:length]
    x_NLW = model.transformer(x_NLW, attn_mask=model.attn_mask[:length, :length])
    x_NLW = model.ln_final(x_NLW)
    x_NW = x_NLW[torch.arange(len(x_NLW), device=x_NLW.device), token_NL.argmax(dim=-1)]
    projection = model.text_projection
    return projection(x_NW) if isinstance(projection, torch.nn.Linear) else x_NW @ projection


def middle(image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crops an image to its centre if one side is longer than MAX_ASPECT times the other.

    A network's preprocessing scales the shorter side to its own size, then crops a square: an image
    of one pixel by a million would take 200 GB on the way.
    """
    most = MAX_ASPECT * min(image_HW3.shape[:2])
    top, left = (max(0, side - most) // 2 for side in image_HW3.shape[:2])
    return image_HW3[top : top + most, left : left + most]
