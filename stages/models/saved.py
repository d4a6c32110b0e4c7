"""Stores and reads trained models: `model.json` describes one, `model.safetensors` has its weights.

The card is {"kind", "version", every setting that rebuilds the network, "sha256" of the weights}.
A training stage writes both below `out/`; a copy elsewhere needs no such folder. A stage with
several seeds writes a pair for each: `seed-3.model.json`.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, uint8

from clipmill.metadata.outputs import OUT, Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Put
from clipmill.pipeline.errors import StageError

T = TypeVar("T")

VERSION = 1
CARD, WEIGHTS = "model.json", "model.safetensors"
CLIP = "clip"  # kind of the models of images and texts that train.clip stores


def half(device: str) -> torch.dtype:
    """Returns the type that stands for bfloat16: float32 on a processor that has none.

    There bfloat16 takes 10 to 20 times as long.

    Source: oneDNN's own answer: x86 has it from AVX-512 on, Arm from its BF16 extension on.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 over names and values, independent of file format and order."""
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).view(uint8).numpy().tobytes())
    return total.hexdigest()


def put_model(
    put: Put, scratch: Path, kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> str:
    """Stores both files, the card last; returns the weights' SHA-256."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    card = {"kind": kind, "version": VERSION, **settings, "sha256": digest}
    for name, body in ((WEIGHTS, data), (CARD, (json.dumps(card, indent=1) + "\n").encode())):
        path = scratch / name
        path.write_bytes(body)
        put(name, path)
    return digest


def read_model(
    uri: str, kind: str, name: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a card, by default the first, and its weights; raises StageError if they are unfit."""
    folder = Storage(uri)
    name = name or cards(uri)[0]
    card = read_card(folder, name)
    if card.get("kind") != kind:
        do = f"name a model of kind {kind!r}: another stage, or another folder"
        raise StageError(f"a model of kind {card.get('kind')!r}", f"{folder}/{name}", do)
    if card.get("version") != VERSION:
        found = f"version {card.get('version')!r} of the format of models"
        do = f"this clipmill reads version {VERSION}: use the one that wrote it, or train again"
        raise StageError(found, f"{folder}/{name}", do)
    beside = name.removesuffix(CARD) + WEIGHTS
    data = folder.read_if_there(beside)
    digest = hashlib.sha256(data or b"").hexdigest()
    if data is None or digest != card.get("sha256"):
        found = "no weights" if data is None else f"weights of digest {digest[:12]}"
        do = f"{CARD} says {str(card.get('sha256'))[:12]}: copy both files again, or train again"
        raise StageError(found, f"{folder}/{beside}", do)
    try:
        return card, load(data)
    except (SafetensorError, MemoryError, ValueError, LookupError, RuntimeError) as error:
        do = "copy the file again from where it was trained, or train again"
        found = f"weights that cannot be read: {_words(error)}"
        raise StageError(found, f"{folder}/{beside}", do) from error


def read_card(folder: Storage, name: str) -> dict[str, Any]:
    """Reads a card; raises DamagedError if it or its weights changed since they were stored."""
    if name.startswith(f"{OUT}/"):
        outputs = Outputs(folder)
        for file in (name, name.removesuffix(CARD) + WEIGHTS):
            outputs.check(file.removeprefix(f"{OUT}/"))
    return folder.read_json(name, dict[str, Any]) or {}


def cards(uri: str) -> list[str]:
    """Returns names of cards in a folder or its out/, by seed, snapshots last; else StageError."""
    folder = Storage(uri)
    for place in ("", "out/"):
        if names := [e.name for e in folder.entries(place.rstrip("/")) if e.name.endswith(CARD)]:
            return sorted((place + name for name in names), key=_by_seed)
    do = "name the folder that a training stage wrote, or one that holds a copy of its `out`"
    raise StageError(f"no {CARD}, nor out/{CARD}", str(folder), do)


def _by_seed(name: str) -> tuple[int, bool, int]:
    seed, share = re.search(r"seed-(-?\d+)\.", name), re.search(r"at-(\d+)\.", name)
    return int(share[1]) if share else 0, seed is not None, int(seed[1]) if seed else 0


def built(
    build: Callable[[], T],
    weights: dict[str, Tensor],
    where: str,
    network: Callable[[T], Any] = lambda model: model,
) -> T:
    """Builds a model from an untrusted card, and loads its weights; raises StageError if unfit.

    Shapes are checked first on the meta device: a card may ask for more memory than there is.
    """
    try:
        with contextlib.suppress(RuntimeError), torch.device("meta"):  # some networks read values
            check_shapes(network(build()).state_dict(), weights, where)
        model = build()
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        raise StageError(
            found=f"a model of another architecture: {_words(error)}",
            where=where,
            do="use a model that this version stored, or train again",
        ) from error
    matching(network(model), weights, where)
    return model


def check_shapes(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Raises StageError with the first weight of a network that is missing or of another shape."""
    for name, tensor in own.items():
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != tuple(tensor.shape):
            missing = f"Missing key {name}"
            raise _other(missing if shape is None else f"size mismatch for {name}: {shape}", where)


def matching(network: Any, weights: dict[str, Tensor], where: str) -> Any:
    """Loads weights into the network; raises StageError if they are of another architecture."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise _other(first, where) from None
    return network.eval()


def _other(difference: str, where: str) -> StageError:
    do = "name the weights that belong to this network"
    return StageError(f"weights of another architecture: {difference}", where, do)


def _words(error: Exception) -> str:
    """Returns an error's type and the first line of its message, which may be empty."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")
