"""Loads `timm:NAME@FILE`: a network of timm's for images alone, such as DINO.

NAME is timm's: vit_small_patch14_dinov2.lvd142m. FILE has its weights as timm or the authors
publish them (.safetensors; or .pth and .bin, read as weights only); no hub is used.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.extras import missing
from clipmill.stages.towers._open_clip import middle

# Shapes: N images, D width of the embedding, H x W pixels.

IMAGES = 32  # every call of the network has this many, so that no vector depends on its neighbours


def width(name: str) -> None:
    """Checks the name and returns None: only the network tells its width. Imports no framework."""
    parts(name)
    if find_spec("timm") is None:
        raise missing("timm", f"model 'timm:{name}'")


def parts(name: str) -> tuple[str, Path]:
    """Splits a name into network and file; raises RecipeError if either is missing."""
    network, _, file = name.partition("@")
    if not network or not file:
        raise RecipeError(
            "it names no weights",
            f"model 'timm:{name}'",
            "write timm:NAME@FILE, as in timm:vit_small_patch14_dinov2.lvd142m@dino.safetensors",
        )
    return network, Path(file).expanduser()


def load(name: str, device: str, threads: int) -> "Timm":
    """Loads the network without its classifier; raises StageError if that fails."""
    network, file = parts(name)
    width(name)
    where = f"model 'timm:{name}'"
    if not file.is_file():
        raise StageError("no such file", str(file), "copy the weights there, or mend the path")
    import timm
    import torch

    torch.set_num_threads(threads)
    if not timm.is_model(network.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{network.partition('_')[0]}*")[:5])
        raise StageError(f"timm has no network {network!r}", where, f"it has {near or 'others'}")
    try:  # with its classifier: without one, timm would ignore weights that the file lacks
        model: Any = timm.create_model(
            network, pretrained=True, pretrained_cfg_overlay={"file": str(file)}
        )
        model.reset_classifier(0)
    except Exception as error:  # the file's format, or weights of another network
        text = str(error).strip().splitlines()
        raise StageError(
            f"weights that are not of {network}: {text[0] if text else type(error).__name__}",
            str(file),
            "give the file that was published with this network",
        ) from None
    return Timm(model, device)


class Timm:
    """A network whose pooled float32 features, at length 1, are the embedding; its own
    preprocessing resizes the shorter side and crops the centre."""

    def __init__(self, model: Any, device: str) -> None:
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        from clipmill.stages.models.saved import weights_digest

        self.sha256 = weights_digest(model.state_dict())
        self.model, self.device = model.eval().to(device), device
        self.width = int(getattr(model, "head_hidden_size", model.num_features))
        config = resolve_model_data_config(model)
        self.preprocess = create_transform(**config, is_training=False)

    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns (N, D) unit rows of 8-bit RGB images of any size."""
        import torch
        from PIL import Image

        out = [np.empty((0, self.width), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(image_HW3), IMAGES):
                some = image_HW3[start : start + IMAGES]
                pixels = [self.preprocess(Image.fromarray(middle(image))) for image in some]
                pixels += pixels[-1:] * (IMAGES - len(some))
                row_ND = self.model(torch.stack(pixels).to(self.device))
                unit_ND = torch.nn.functional.normalize(row_ND.float(), dim=1)
                out.append(unit_ND[: len(some)].cpu().numpy())
        return np.concatenate(out)

    def embed_texts(self, texts: list[str]) -> NoReturn:
        raise StageError(
            "a network of timm's reads no captions", "key `model`", "use it in embed.image"
        )
