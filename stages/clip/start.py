"""Starts a training from weights that are there: finds, fits and loads them, and locks a tower.

stage:NAME            a training of the recipe
checkpoint:URI        a folder that train.clip wrote
open_clip:NAME@FILE   weights of open_clip's network NAME
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FileType

from clipmill.metadata.keys import redacted
from clipmill.metadata.outputs import digest_of
from clipmill.metadata.storage import Storage, open_uri
from clipmill.pipeline.errors import RecipeError, StageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from clipmill.stages.clip.towers import Towers

# Shapes: L positions of the start, P of the network, W width of a layer.

KEPT = 20  # first positions of a text that a longer context leaves as they are


@dataclass(frozen=True)
class Start:
    """Weights by place and digest: of a folder of train.clip, or of a file of open_clip's."""

    place: str
    sha256: str
    is_file: bool


def parts(start: str) -> tuple[str, str, str]:
    """Returns scheme, network and place; raises RecipeError if a setting names no weights."""
    scheme, _, place = start.partition(":")
    network, _, file = place.partition("@")
    if scheme == "open_clip" and network and file:
        return scheme, network, str(Path(file).expanduser())
    if scheme not in ("stage", "checkpoint") or not place:
        do = "write stage:NAME, checkpoint:URI or open_clip:NAME@FILE"
        raise RecipeError(f"start is {start!r}", "key `start`", do)
    return scheme, "", place


def check_start(start: str, model: str) -> None:
    """Raises RecipeError if weights have no name, or another activation, which no shape tells."""
    if network := parts(start)[1]:
        from clipmill.stages.clip.open_clip_config import config_of

        quick = [name for name in (network, model) if config_of(name).get("quick_gelu")]
        if len(quick) == 1:
            found = f"{quick[0]!r} has quick_gelu, the other has not"
            raise RecipeError(found, "keys `start`, `model`", f"write model: {network}")


def look_at(start: str) -> None:
    """Checks that the file or folder of a start exists; raises StageError."""
    scheme, _, place = parts(start)
    store, path = open_uri(place)
    if scheme != "stage" and store.get_file_info(path).type == FileType.NotFound:
        raise StageError(f"no '{redacted(place)}'", "key `start`", "copy it there, or mend it")


def start_of(start: str, folder: str | None = None) -> Start:
    """Returns the weights that a setting names; `folder` is that of `stage:NAME`."""
    from clipmill.stages.models.saved import cards, read_card

    scheme, _, place = parts(start)
    if scheme == "open_clip":
        look_at(start)
        return Start(place, digest_of(Path(place)), is_file=True)
    place = folder or place
    return Start(place, str(read_card(Storage(place), cards(place)[0]).get("sha256")), False)


def load_start(model: "Towers", start: Start) -> None:
    """Loads weights, with positions fitted to the model's context and pictures.

    Raises StageError if they have changed since the stage began or are another network's: it names
    the first weight that differs.

    Source: open_clip's `load_checkpoint`, bicubic for another grid of patches; see `stretched`.
    """
    from clipmill.stages.models.saved import CLIP, check_shapes, matching, read_model

    network: Any = model.network
    if start.is_file:
        digest, weights = digest_of(Path(start.place)), _read(start.place, network)
    else:
        card, weights = read_model(start.place, CLIP)
        digest = card["sha256"]
    where = f"key `start`: {redacted(start.place)}"
    if digest != start.sha256:
        found = f"weights of digest {digest[:12]}, which was {start.sha256[:12]} when it began"
        raise StageError(found, where, "run again")
    own = network.state_dict()
    for name in {"positional_embedding", "text.positional_embedding"} & own.keys() & weights.keys():
        weights[name] = stretched(weights[name], len(own[name]))
    if hasattr(network, "visual"):
        from open_clip.model import resize_pos_embed

        resize_pos_embed(weights, network)
    check_shapes(own, weights, where)
    matching(network, weights, where)


def stretched(old_LW: "Tensor", positions: int) -> "Tensor":
    """Returns (P, W): the first 20 positions as they are, the others linearly interpolated.

    77 become 248 = 20 + 4 x 57; the last three lie up to three quarters of a step past the last. A
    shorter context has the first positions.

    Source: Long-CLIP (Zhang et al. 2024), model/longclip.py.
    """
    import torch

    old_LW, rest = old_LW.float(), len(old_LW) - KEPT
    if positions <= len(old_LW) or rest < 2:
        return old_LW[:positions]
    place_P = KEPT + torch.arange(positions - KEPT) * rest / (positions - KEPT)
    below_P = place_P.long().clamp(max=len(old_LW) - 2)
    rest_PW = torch.lerp(old_LW[below_P], old_LW[below_P + 1], (place_P - below_P)[:, None])
    return torch.cat([old_LW[:KEPT], rest_PW])


def shares_of(model: "Towers", decay: float) -> dict["Parameter", float]:
    """Returns each tower's weights with their share of the learning rate: `decay` to the number of
    groups of layers, as `lock` counts them, that come after its own.

    Source: BEiT (Bao et al. 2022), layer-wise decay.
    """
    shares: dict[Parameter, float] = {}
    for tower in ("image", "text"):
        lock(model, tower, 0)
        locked = [weight for weight in model.parameters() if not weight.requires_grad]
        for groups in range(1, len(locked) + 1):
            lock(model, tower, groups, "layer_decay")
            free = [weight for weight in locked if weight.requires_grad]
            shares = dict.fromkeys(free, decay ** (groups - 1)) | shares
        model.requires_grad_(True)
    return shares


def lock(model: "Towers", tower: str, groups: int, key: str = "unlock_groups") -> None:
    """Locks the weights of a tower, but for its last `groups` groups of layers.

    Source: LiT (Zhai et al. 2022), and open_clip's `--lock-image` and `--lock-text`.
    """
    network: Any = model.network
    try:
        if not hasattr(network, "lock_image_tower"):
            getattr(network, tower).requires_grad_(False)
        elif tower == "image":
            network.lock_image_tower(unlocked_groups=groups)
        else:
            network.lock_text_tower(unlocked_layers=groups)
    except AssertionError as error:  # of open_clip's ResNets, too
        found = f"a tower that is locked as a whole: {error}"
        raise StageError(found, f"key `{key}`", "leave it out") from None


def _read(file: str, network: Any) -> dict[str, "Tensor"]:
    """Reads a file of weights, and unpickles nothing else; StageError where it is unfit."""
    from open_clip.convert import convert_state_dict
    from open_clip.factory import load_state_dict

    try:
        return dict(convert_state_dict(network, load_state_dict(file, weights_only=True)))
    except Exception as error:  # on bytes of others, unpicklers raise anything
        words = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        do = "give a .safetensors, or a .pt of weights alone: torch.save(model.state_dict(), FILE)"
        raise StageError(f"no file of weights: {words}", f"key `start`: {file}", do) from None
