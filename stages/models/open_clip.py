"""`open_clip:NAME/TAG` and `open_clip:NAME@FILE`: open_clip's networks, by tag or from a file.

A tag is fetched once by open_clip, from the hub that it names. A file (.pt, .bin: read as weights
only; or .safetensors) needs no hub: the one to use on machines that see no internet.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.clip.open_clip_config import config_of, encode_short, is_causal, middle

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: N images or texts, D width of the embedding, H x W pixels.

ROWS = 32  # a call of a tower always has as many, so that no value depends on its neighbours
STEP = 8  # tokens that the length of a prompt is rounded up to


def width(name: str) -> int:
    """Width of the embeddings, from open_clip's configuration files. Imports no framework."""
    network, _, _ = parts(name)
    config = config_of(network, f"model 'open_clip:{name}'")
    return int(config["embed_dim"])


def parts(name: str) -> tuple[str, str | None, Path | None]:
    """Network, and either its tag or its file; RecipeError where the name has neither."""
    network, at, file = name.partition("@")
    if at and network and file:
        return network, None, Path(file).expanduser()
    network, _, tag = name.partition("/")
    if not network or not tag or at:
        raise RecipeError(
            "it names no weights",
            f"model 'open_clip:{name}'",
            "write open_clip:NAME/TAG, as in open_clip:ViT-B-32/openai, or open_clip:NAME@FILE",
        )
    return network, tag, None


def load(name: str, device: str, threads: int) -> "OpenClip":
    """The network with its weights; StageError where either cannot be had."""
    network, tag, file = parts(name)
    width(name)
    if file is not None and not file.is_file():
        raise StageError("no such file", str(file), "copy the weights there, or mend the path")
    import torch

    torch.set_num_threads(threads)
    return OpenClip(network, tag, file, device)


class OpenClip:
    """Both towers in float32, with the network's own preprocessing and tokens."""

    def __init__(self, network: str, tag: str | None, file: Path | None, device: str) -> None:
        import open_clip

        from clipmill.stages.models.saved import weights_digest

        self.network = network
        self.model, self.preprocess = _created(open_clip, network, tag, file, device)
        self.tokenize = open_clip.get_tokenizer(network)
        self.width = width(f"{network}/{tag or file}")
        self.sha256 = weights_digest(self.model.state_dict())
        self.device = device

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, D) unit rows, of 8-bit RGB images of any size."""
        import torch
        from PIL import Image

        def prepared(image: NDArray[np.uint8]) -> "Tensor":
            return self.preprocess(Image.fromarray(middle(image)))

        with ThreadPoolExecutor(torch.get_num_threads()) as side_by_side:
            pixels = list(side_by_side.map(prepared, image_HW3))
        return self._rows(self.model.encode_image, torch.stack(pixels) if pixels else None)

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """(N, D) unit rows; a text past the network's context is cut."""
        return self._rows(self.model.encode_text, self.tokenize(texts) if texts else None)

    def embed_prompts(self, texts: list[str]) -> NDArray[np.float32]:
        """`embed_texts` without most of the padding, which costs more than the words.

        Where the text tower is causal, what follows a text changes none of its values: each is
        padded to the next multiple of 8 tokens, by its own length: neighbours change no bit.
        Error: max 5e-7 beside `embed_texts` (tests/stages/models/test_open_clip.py).
        """
        import torch

        if not texts or not is_causal(self.model):
            return self.embed_texts(texts)
        token_NL = self.tokenize(texts)
        length_N = token_NL.argmax(dim=1) + 1  # the mark of the end is the largest token
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
    """Network in evaluation mode, and its preprocessing of an image."""
    where = f"open_clip:{network}/{tag}" if tag else f"open_clip:{network}@{file}"
    if tag and not open_clip.pretrained.is_pretrained_cfg(network, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(network)) or "none"
        raise StageError(f"no weights {tag!r} of {network}", where, f"it has: {tags}")
    logging.disable(logging.ERROR)  # it logs what it raises
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            network, pretrained=tag or str(file), device=device, weights_only=True
        )
    except Exception as error:  # of the hub, its client, the file's format, the network
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
