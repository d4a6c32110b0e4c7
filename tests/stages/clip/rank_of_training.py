"""One rank of some trainings in float64: `python -m … RANK OF ADDRESS OUT`.

Rank 0 leaves in OUT/MODEL-LOSS, a safetensors file, each step's loss, the first step's gradients,
and the weights after STEPS.
"""

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.dataset import Rank
from stages.clip.distributed import ALONE, Ranks, together
from stages.clip.loop import Means, Schedule, Trainer
from stages.clip.losses import find_loss
from stages.clip.nano import Nano
from stages.clip.towers import Towers
from tests.stages.clip.exported import TINY
from tests.stages.clip.tiny_vit import TinyViT, drawn

STEPS = 20
CASES = (("vit", "clip"), ("vit", "multi_positive"), ("nano", "siglip"))


def trained(model: str, loss: str, ranks: Ranks = ALONE, accumulate: int = 1) -> dict[str, Tensor]:
    """What 20 steps leave; the same rows whatever the ranks."""
    torch.manual_seed(0)
    towers: Towers = TinyViT() if model == "vit" else Nano(TINY).double()
    schedule = Schedule(
        steps=STEPS, learning_rate=1e-3, warmup_steps=3, weight_decay=0.1, precision="float64"
    )
    means = Means(ranks=ranks, accumulate=accumulate)
    trainer = Trainer(towers, schedule, find_loss(loss), means)
    left: dict[str, Tensor] = {}
    for n in range(STEPS):
        trainer.learn(drawn(n, ranks.rank, ranks.of, most=3 if loss == "multi_positive" else 1))
        if n == 0:
            for name, weight in trainer.model.named_parameters():
                if weight.grad is not None:
                    left[f"gradient.{name}"] = weight.grad.contiguous().clone()
    left |= {name: value.contiguous() for name, value in trainer.model.state_dict().items()}
    return left | {"losses": torch.tensor(trainer.losses, dtype=torch.float64)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    number, of, address, out = sys.argv[1:]
    with together(Rank(rank=int(number), of=int(of), rendezvous=address), "cpu") as ranks:
        for model, loss in CASES:
            left = trained(model, loss, ranks)
            if ranks.rank == 0:
                save_file(left, f"{out}/{model}-{loss}")
