"""A trained model, stored and loaded by digest; and the state of an unfinished training."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from metadata.keys import redacted
from metadata.storage import Storage
from pipeline.dataset import Task
from pipeline.errors import StageError
from stages.clip.cache import square
from stages.clip.loop import Trainer
from stages.clip.texts import token_bags
from stages.clip.towers import Architecture, Clip
from stages.models.saved import matching, put_model, read_model

# Shapes: N images or texts, D width of the embedding, H x W pixels.

KIND = "clip"
ROWS = 64  # a call of a tower always has as many rows, so that neighbours change no bit


class TrainedClip:
    """A model that `load` found: an `ImageTextModel` of unit float32 embeddings."""

    def __init__(self, model: Clip, sha256: str, device: str) -> None:
        self.width = model.architecture.width
        self.sha256 = sha256
        self.architecture = model.architecture
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def embed_images(self, image_HW3: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, D) unit rows, of 8-bit RGB images of any size."""
        size = self.architecture.image_size
        embedded = []
        for images in _chunks(image_HW3):
            pixels_NHW3 = np.zeros((ROWS, size, size, 3), np.uint8)
            for i, image in enumerate(images):  # sizes differ
                pixels_NHW3[i] = square(image, size)
            pixels_N3HW = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).to(self._device)
            embedded.append(self._model.embed_images(pixels_N3HW)[: len(images)])
        return self._array(embedded)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """(N, D) unit rows."""
        a = self.architecture
        embedded = []
        for some in _chunks(texts):
            padded = [*some, *[""] * (ROWS - len(some))]
            token_T, start_N = token_bags(padded, a.buckets, a.tokens)
            tokens, starts = (torch.from_numpy(x).to(self._device) for x in (token_T, start_N[:-1]))
            embedded.append(self._model.embed_texts(tokens, starts)[: len(some)])
        return self._array(embedded)

    def _array(self, embedded: list[Tensor]) -> NDArray[np.float32]:
        if not embedded:
            return np.empty((0, self.width), np.float32)
        return torch.cat(embedded).float().cpu().numpy()


def save_model(model: Clip, facts: Mapping[str, Any], task: Task, prefix: str = "") -> None:
    """Stores a model in out/: its weights, then the card that rebuilds it."""
    settings = {"architecture": asdict(model.architecture), **facts}
    put_model(task, KIND, settings, model.state_dict(), prefix)


def load(uri: str, device: str = "cpu", threads: int = 1, name: str | None = None) -> TrainedClip:
    """A model in a folder or its out/, of several the first unless a card's name is given.

    StageError where it is no such model, or has changed.
    """
    card, weights = read_model(uri, KIND, name)
    torch.set_num_threads(threads)
    model = matching(Clip(architecture_of(card, uri)), weights, redacted(uri))
    return TrainedClip(model.to(memory_format=torch.channels_last), card["sha256"], device)


def architecture_of(card: Mapping[str, Any], uri: str) -> Architecture:
    """What a model of this kind is rebuilt from; StageError where this code builds no such one."""
    try:
        pairs = card["architecture"].items()
        held: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
        return Architecture(**held)
    except (KeyError, TypeError, AttributeError) as error:
        raise StageError(
            found=f"a model of another architecture: {error}",
            where=f"{redacted(uri)}, `architecture` in model.json",
            do="use a model that train.clip of this version stored, or train again",
        ) from error


class Checkpoints:
    """The newest state of one training, below `checkpoints/`; those of other inputs don't count."""

    def __init__(self, folder: str, inputs: str) -> None:
        self.storage = Storage(folder)
        self.inputs = inputs

    def store(self, trainer: Trainer) -> None:
        """Puts the state, then takes away the one before."""
        name = f"{self.inputs}-{trainer.step:08d}.safetensors"
        self.storage.put(
            f"checkpoints/{name}", safetensors.torch.save(_plain(trainer.state())), "step"
        )
        for other in self._names():
            if other != name:
                self.storage.delete(f"checkpoints/{other}")

    def restore(self, trainer: Trainer) -> None:
        """Moves the trainer to the newest whole state; leaves it alone where there is none."""
        for name in sorted(self._names(), reverse=True):
            with contextlib.suppress(SafetensorError):  # torn: the steps since are taken again
                trainer.restore(safetensors.torch.load(self.storage.read(f"checkpoints/{name}")))
                return

    def _names(self) -> list[str]:
        names = [entry.name for entry in self.storage.entries("checkpoints")]
        return [name for name in names if name.startswith(f"{self.inputs}-")]


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in state.items()}


def _chunks(values: list[Any]) -> list[list[Any]]:
    return [values[start : start + ROWS] for start in range(0, len(values), ROWS)]
