"""Prepares the input of open_clip's networks, trained here or not."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: N texts, L tokens of one, W width of a layer, D of the embedding, H x W pixels.

MAX_ASPECT = 1000  # longer side to shorter; at a network's 224 pixels 200 MB


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
