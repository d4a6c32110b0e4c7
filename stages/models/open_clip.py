"""Loads open_clip's networks: `open_clip:NAME/TAG` or `open_clip:NAME@FILE`.

open_clip downloads a tag's weights once, from the tag's hub. A file (.safetensors; or .pt and .bin,
read as weights only) needs no hub, and so works on machines without internet.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.clip.open_clip_config import config_of
from clipmill.stages.towers._open_clip import encode_short, is_causal, middle

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: N images or texts, D width of the embedding, H x W pixels.

ROWS = 32  # every call of a tower has this many, so that no value depends on its neighbours
STEP = 8  # tokens; a prompt's length is rounded up to a multiple


def width(name: str) -> int:
    """Returns the embeddings' width, from open_clip's configuration. Imports no framework."""
    network, _, _ = parts(name)
    config = config_of(network, f"model 'open_clip:{name}'")
    return int(config["embed_dim"])


def parts(name: str) -> tuple[str, str | None, Path | None]:
    """Splits a name into network, and tag or file; raises RecipeError if it has neither."""
    network, sign, file = name.partition("@")
    if sign and network and file:
        return network, None, Path(file).expanduser()
    network, _, tag = name.partition("/")
    if not network or not tag or sign:
        raise RecipeError(
            "it names no weights",
            f"model 'open_clip:{name}'",
            "write open_clip:NAME/TAG, as in open_clip:ViT-B-32/openai, or open_clip:NAME@FILE",
        )
    return network, tag, None


def load(name: str, device: str, threads: int) -> "OpenClip":
    """Loads the network with its weights; raises StageError if either cannot be loaded."""
    network, tag, file = parts(name)
    embedded = width(name)
    if file is not None and not file.is_file():
        raise StageError("no such file", str(file), "copy the weights there, or mend the path")
    import torch

    torch.set_num_threads(threads)
    return OpenClip(network, tag, file, embedded, device)


class OpenClip:
    """Both towers in float32, with the network's own preprocessing and tokenizer."""

    def __init__(
        self, network: str, tag: str | None, file: Path | None, width: int, device: str
    ) -> None:
        import open_clip

        from clipmill.stages.models.saved import weights_digest

        self.network, self.width = network, width
        self.model, self.preprocess = _created(open_clip, network, tag, file, device)
        self.tokenize = open_clip.get_tokenizer(network)
        self.sha256 = weights_digest(self.model.state_dict())
        self.scale = self.model.logit_scale.exp().item()
        self.device = device

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows of 8-bit RGB images of any size."""
        import torch
        from PIL import Image

        def prepared(image: NDArray[np.uint8]) -> "Tensor":
            return self.preprocess(Image.fromarray(middle(image)))

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            pixels = list(threads.map(prepared, image_HW3))
        return self._rows(self.model.encode_image, torch.stack(pixels) if pixels else None)

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows; a text past the network's context is cut."""
        return self._rows(self.model.encode_text, self.tokenize(texts) if texts else None)

    def embed_prompts(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns `embed_texts`, faster: without most of the padding, which costs more than words.

        Padding changes no value of a causal text tower, so each text is padded to the next multiple
        of 8 tokens. Its shape depends on its own length alone: neighbours change no bit.
        Error: max 5e-7 beside `embed_texts` (tests/stages/models/test_open_clip.py).
        """
        import torch

        if not texts or not is_causal(self.model):
            return self.embed_texts(texts)
        token_NL = self.tokenize(texts)
        length_N = token_NL.argmax(dim=1) + 1  # the end mark is the largest token
        padded_N = ((length_N + STEP - 1) // STEP * STEP).clamp(max=token_NL.shape[1])
        out_ND = np.empty((len(texts), self.width), np.float32)
        for length in padded_N.unique().tolist():
            of_length_N = torch.nonzero(padded_N == length)[:, 0]
            out_ND[of_length_N] = self._rows(self._encode_short, token_NL[of_length_N, :length])
        return out_ND

    def _encode_short(self, token_NL: "Tensor", normalize: bool) -> "Tensor":
        import torch

        text_ND = encode_short(self.model, token_NL)
        return torch.nn.functional.normalize(text_ND, dim=-1) if normalize else text_ND

    def _rows(self, encode: Any, input_N: "Tensor | None") -> NDArray[np.float32]:
        import torch

        if input_N is None:
            return np.empty((0, self.width), np.float32)
        out = []
        with torch.inference_mode():
            for part in input_N.split(ROWS):
                filling = part[-1:].expand(ROWS - len(part), *part.shape[1:])
                whole = torch.cat([part, filling]).to(self.device)
                out.append(encode(whole, normalize=True)[: len(part)].float().cpu())
        return torch.cat(out).numpy()


def _created(open_clip: Any, network: str, tag: str | None, file: Path | None, device: str) -> Any:
    """Creates a network in evaluation mode, and its preprocessing of an image."""
    where = f"open_clip:{network}/{tag}" if tag else f"open_clip:{network}@{file}"
    if tag and not open_clip.pretrained.is_pretrained_cfg(network, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(network)) or "none"
        raise StageError(f"no weights {tag!r} of {network}", where, f"it has: {tags}")
    logging.disable(logging.ERROR)  # open_clip also raises what it logs
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            network, pretrained=tag or str(file), device=device, weights_only=True
        )
    except Exception as error:  # by the hub, its client, the file's format or the network
        text = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {text[0] if text else ''}"
        if tag:
            raise StageError(
                found=f"no weights of {where}, here or at their hub: {problem}",
                where=where,
                do=f"connect once to fetch them, or copy the file: open_clip:{network}@FILE",
            ) from None
        detail = f": {text[1].strip()}" if len(text) > 1 else ""
        raise StageError(
            found=f"weights that {network} cannot take: {problem}{detail}",
            where=str(file),
            do=f"name the file of a {network}, .pt or .safetensors, or the network of this file",
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return model.eval(), preprocess
