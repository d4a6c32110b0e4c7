"""One rank of some trainings in float64: `python -m … RANK OF ADDRESS OUT`.

Rank 0 leaves in OUT/MODEL-LOSS, a safetensors file, each step's loss, the first step's gradients,
and the weights after STEPS. Each rank leaves in OUT/stop-RANK.json the error of a training in which
one row has a weight that is NaN, and pictures that do not decode as it counted them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.batch import Batch
from clipmill.stages.clip.distributed import ALONE, Ranks, together
from clipmill.stages.clip.loop import Execution, Schedule, Trainer, train
from clipmill.stages.clip.losses import declared_by, find_loss, state_of
from clipmill.stages.clip.patches import drop_patches
from clipmill.stages.clip.towers import Towers
from clipmill.stages.towers.nano import Nano
from tests.stages.clip.exported import TINY
from tests.stages.clip.tiny_vit import TinyViT, drawn

STEPS = 20
BAD = 7  # of 12 rows: the second rank's of two, the third's of four
SCHEDULE = Schedule(
    steps=STEPS, learning_rate=1e-3, warmup_steps=3, weight_decay=0.1, precision="float64"
)
CASES = (
    *(("vit", "clip"), ("vit", "multi_positive"), ("nano", "siglip")),
    *(("locked", "cwcl"), ("vit", "negatives"), ("locked", "intra_modal")),
    *(("vit", "tempnet"), ("vit", "mlcd"), ("patches", "a_clip")),
    *(("vit", "cloob"), ("vit", "mod_x"), ("vit", "distill")),
)


def trained(model: str, loss: str, ranks: Ranks = ALONE, accumulate: int = 1) -> dict[str, Tensor]:
    """What 20 steps leave; the same rows whatever the ranks."""
    torch.manual_seed(0)
    towers: Towers = Nano(TINY).double() if model == "nano" else TinyViT()
    if model == "locked":
        towers.clip.lock_image_tower()
    if model in ("locked", "patches"):  # half of the patches for half of the steps
        drop_patches(towers.clip, 0.5, STEPS // 2, 0)
    execution = Execution(ranks=ranks, accumulate=accumulate)
    settings = {"centres": 12, "scale": 3.0} if loss == "mlcd" else {}
    declared = declared_by(loss, settings)
    columns = enumerate(declared.teacher)
    stored = {name: np.random.default_rng(n).normal(size=(12, 5)) for n, name in columns}
    if loss == "mlcd":
        stored = {"nearest_clusters": (np.arange(12.0)[:, None] + np.arange(3)) % 12}
    own = state_of(loss, declared.settings, samples=12, width=8, seed=0)
    own = own and own.double()
    way = {"own": own, "average": 0.9 if loss == "a_clip" else None}
    trainer = Trainer(towers, SCHEDULE, find_loss(loss, settings), execution, **way)
    left: dict[str, Tensor] = {}
    texts = {"most": 3 if loss == "multi_positive" else 1, "negatives": loss == "negatives"}
    texts["views"] = 2 if loss in ("intra_modal", "a_clip") else 1
    for n in range(STEPS):
        batch = drawn(n, ranks.rank, ranks.of, **texts)
        batch = replace(batch, teacher={name: rows[batch.rows] for name, rows in stored.items()})
        trainer.learn(batch)
        if n == 0:
            for name, weight in trainer.model.named_parameters():
                if weight.grad is not None:
                    left[f"gradient.{name}"] = weight.grad.contiguous().clone()
    left |= {name: value.contiguous() for name, value in trainer.model.state_dict().items()}
    if own is not None:
        left |= {f"loss.{name}": value for name, value in own.state_dict().items()}
    return left | {"losses": torch.tensor(trainer.losses, dtype=torch.float64)}


class Drawn:
    """Batches of 12 drawn rows; from step 2 on the weight of row BAD is NaN."""

    size = 12

    def of_rank(self, n: int, rank: int, of: int) -> Batch:
        batch = drawn(n, rank, of)
        weights = batch.weights.copy()
        weights[(batch.rows == BAD) & (n > 1)] = float("nan")
        return replace(batch, weights=weights, replaced={"no_image": rank, "undecodable": 1})

    def __getitem__(self, n: int) -> Batch:
        return self.of_rank(n, 0, 1)

    def files(self, row_B: Any) -> list[str]:
        return [f"{row:05d}.parquet" for row in sorted(set(row_B.tolist()))]


def stopped(ranks: Ranks) -> dict[str, Any]:
    """How a training with a row that is NaN ends on a rank."""
    execution = Execution(ranks=ranks)
    trainer = Trainer(TinyViT(), replace(SCHEDULE, steps=9), find_loss("clip"), execution)
    batches: Any = Drawn()
    try:
        train(trainer, batches, "it", 1000, lambda _: None)
    except StageError as error:
        return {"error": error.args, "step": trainer.step, "replaced": trainer.replaced}
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    number, of, address, out = sys.argv[1:]
    with together(Rank(rank=int(number), of=int(of), rendezvous=address), "cpu") as ranks:
        for model, loss in CASES:
            left = trained(model, loss, ranks)
            if ranks.rank == 0:
                save_file(left, f"{out}/{model}-{loss}")
        Path(out, f"stop-{number}.json").write_text(json.dumps(stopped(ranks)))
