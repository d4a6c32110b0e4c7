"""The state of an unfinished training, stored so that a killed one goes on where it was."""

import contextlib
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from metadata.storage import Storage
from stages.clip.loop import Trainer


class Checkpoints:
    """The newest state of one training, below `checkpoints/`; those of other inputs are ignored."""

    def __init__(self, folder: str, inputs: str) -> None:
        self.storage = Storage(folder)
        self.inputs = inputs

    def store(self, trainer: Trainer) -> None:
        """Stores the state, then deletes the one before."""
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
