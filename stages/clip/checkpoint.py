"""The state of an unfinished training, stored so that a killed one goes on where it was."""

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch

from clipmill.pipeline.dataset import Checkpoints

if TYPE_CHECKING:
    from clipmill.stages.clip.loop import Trainer


def store(trainer: "Trainer", checkpoints: Checkpoints, scratch: Path) -> None:
    """Stores all that the next step depends on."""
    path = scratch / "state.safetensors"
    state = {name: value.detach().contiguous() for name, value in trainer.state().items()}
    safetensors.torch.save_file(state, path)
    checkpoints.put(trainer.step, path)


def restore(trainer: "Trainer", checkpoints: Checkpoints) -> None:
    """Moves the trainer to the newest whole state; leaves it alone where there is none."""
    if (newest := checkpoints.newest()) is not None:
        _, path = newest
        trainer.restore(safetensors.torch.load_file(path))
        path.unlink()
