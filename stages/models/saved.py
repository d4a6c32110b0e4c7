"""A trained model at rest: `model.json` says what it is, `model.safetensors` holds its weights.

The card is {"kind", "version", every setting that rebuilds the network, "sha256" of the weights}.
A stage that trains leaves both below `out/`; a copy of them elsewhere may do without that folder.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from metadata.storage import Storage
from pipeline.dataset import Task
from pipeline.errors import StageError

VERSION = 1
CARD, WEIGHTS = "model.json", "model.safetensors"


def put_model(
    task: Task, kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> str:
    """Stores both files, the card last; returns the weights' SHA-256."""
    data = save({name: tensor.detach().contiguous() for name, tensor in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    card = {"kind": kind, "version": VERSION, **settings, "sha256": digest}
    for name, body in ((WEIGHTS, data), (CARD, (json.dumps(card, indent=1) + "\n").encode())):
        path = task.worker.scratch / name
        path.write_bytes(body)
        task.put_file(name, path)
    return digest


def read_model(uri: str, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the weights below a URI; StageError where they are not such a model, whole."""
    folder = Storage(uri)
    prefix = "" if folder.read_if_there(CARD) is not None else "out/"
    card = read_card(uri)
    if card.get("kind") != kind:
        raise StageError(
            found=f"a model of kind {card.get('kind')!r}",
            where=f"{folder}/{prefix}{CARD}",
            do=f"name a model of kind {kind!r}: another stage, or another folder",
        )
    if card.get("version") != VERSION:
        raise StageError(
            found=f"version {card.get('version')!r} of the format of models",
            where=f"{folder}/{prefix}{CARD}",
            do=f"this clipmill reads version {VERSION}: use the one that wrote it, or train again",
        )
    data = folder.read_if_there(prefix + WEIGHTS)
    digest = hashlib.sha256(data or b"").hexdigest()
    if data is None or digest != card.get("sha256"):
        raise StageError(
            found="no weights" if data is None else f"weights of digest {digest[:12]}",
            where=f"{folder}/{prefix}{WEIGHTS}",
            do=f"{CARD} says {str(card.get('sha256'))[:12]}: copy both files again, or train again",
        )
    return card, load(data)


def read_card(uri: str) -> dict[str, Any]:
    """What `model.json` below a URI says; StageError where there is none."""
    folder = Storage(uri)
    for name in (CARD, f"out/{CARD}"):
        card = folder.read_json(name)
        if isinstance(card, dict):
            return card
    raise StageError(
        found=f"no {CARD}, nor out/{CARD}",
        where=str(folder),
        do="name the folder that a training stage wrote, or one that holds a copy of its `out`",
    )


def matching(network: Any, weights: dict[str, Tensor], where: str) -> Any:
    """The network with these weights; StageError where they are another architecture's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise StageError(
            found=f"weights of another architecture: {first}",
            where=where,
            do="name the weights that belong to this network",
        ) from None
    return network.eval()
