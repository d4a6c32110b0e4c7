"""A training step against open_clip's own loop, on the same networks, batches and cores.

    python -m tests.benchmarks.train_step [full | NETWORK ... [compiled] [options]]

A ViT by default; full: all of it.

open_clip: `train_one_epoch` of the released package, with its loss, optimiser and schedule. Ours: a
Trainer on a copy of the same network; then each option by itself. A tiny ViT and a tiny ResNet, one
thread, the same 32 pairs a step. First the losses of eight steps are held to open_clip's: float32
to 1e-3 relative, the others to 5e-2. CPU time, for others share the cores. `options`: float32 with
a locked image tower, half of the patches dropped, SigLIP's loss, and two pieces a step; their
losses: tests/stages/clip.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transformer import PatchDropout
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch

from clipmill.stages.clip.batch import Batch
from clipmill.stages.clip.loop import Execution, Precision, Schedule, Trainer
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.clip.named import new_model
from clipmill.stages.clip.patches import drop_patches
from clipmill.stages.clip.start import lock
from clipmill.stages.clip.towers import Towers, matrices_first
from tests.benchmarks.side_by_side import begin, side_by_side

ROWS, CHECKED, STEPS, ROUNDS = 32, 8, 2, 7
ALL_STEPS, WARMUP, PEAK, DECAY = 1000, 10, 5e-4, 0.2
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
NETWORKS = {
    "ViT": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "ResNet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
}
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bf16": 5e-2}


def main(*names: str) -> str:
    torch.set_num_threads(1)
    for name in [name for name in names if name in NETWORKS]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.json")
            path.write_text(
                json.dumps({"embed_dim": 64, "vision_cfg": NETWORKS[name], "text_cfg": TEXT})
            )
            model = new_model(str(path), 0)
        batches = [drawn(n, model) for n in range(CHECKED)]
        rivals: dict[str, tuple[Callable[..., list[float]], Precision]] = {
            "open_clip": (Theirs(model, "fp32").learn, "float32"),
            "ours": (ours(model, "float32"), "float32"),
            "plain AdamW": (ours(model, "float32", fused=False), "float32"),
            "compiled": (ours(model, "float32", is_compiled=True), "float32"),
            "open_clip bf16": (Theirs(model, "amp_bf16").learn, "bf16"),
            "ours bf16": (ours(model, "bf16"), "bf16"),
        }
        if "compiled" not in names:  # which takes a minute to begin
            del rivals["compiled"]
        expected = rivals["open_clip"][0](batches)
        for rival, (learn, precision) in list(rivals.items())[1:]:  # a fast wrong step is no result
            np.testing.assert_allclose(
                learn(batches), expected, rtol=TOLERANCE[precision], err_msg=rival
            )
        print(f"{name}: steps of {ROWS} pairs; losses {expected[0]:.3f} to {expected[-1]:.3f}")
        first = batches[:STEPS]
        timed = {rival: partial(learn, first) for rival, (learn, _) in rivals.items()}
        ratios = side_by_side(ROWS * STEPS, rounds=ROUNDS, clock=process_time, **timed)
        options = ("locked", "dropped", "siglip", "accumulated")
        for option in options if "options" in names and name == "ViT" else ():
            theirs, mine = (copy.deepcopy(model) for _ in range(2))
            way: dict[str, Any] = {}
            if option == "locked":
                theirs.network.lock_image_tower()
                lock(mine, "image", 0)
            elif option == "dropped":
                theirs.network.visual.patch_dropout = PatchDropout(0.5)
                drop_patches(mine.network, 0.5, ALL_STEPS, 0)
            elif option == "siglip":
                theirs.network.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
                mine, way = copy.deepcopy(theirs), {"loss": "siglip"}
            else:
                way = {"pieces": 2}
            pair = {
                "open_clip": Theirs(theirs, "fp32", **way).learn,
                "ours": ours(mine, "float32", **way),
            }
            timed = {f"{rival} {option}": partial(learn, first) for rival, learn in pair.items()}
            side_by_side(ROWS * STEPS, rounds=ROUNDS, clock=process_time, **timed)
    return f"float32 {ratios['ours']}, bf16 {ratios['ours bf16']} open_clip in float32"


def drawn(n: int, model: Towers, rows: int = ROWS) -> Batch:
    """Noise, and captions of 3 to 24 tokens; the same for both loops."""
    rng = np.random.default_rng(n)
    words = ["a", "red", "dog", "on", "the", "old", "street", "at", "night", "with", "two", "boats"]
    texts = [" ".join(rng.choice(words, rng.integers(3, 24))) for _ in range(rows)]
    tokens, starts = model.tokenize(texts)
    size = model.image_size
    return Batch(
        pixels=rng.integers(0, 256, (rows, 3, size, size), np.uint8),
        tokens=tokens,
        starts=starts[:-1],
        image_of=np.arange(rows),
        weights=np.ones(rows, np.float32),
        rows=np.arange(rows),
        index=np.arange(rows),
    )


def ours(
    model: Towers,
    precision: Precision,
    fused: bool = True,
    is_compiled: bool = False,
    loss: str = "clip",
    pieces: int = 1,
) -> Callable[[list[Batch]], list[float]]:
    """Steps on some batches; the loss of each."""
    schedule = Schedule(
        steps=ALL_STEPS,
        learning_rate=PEAK,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        precision=precision,
        max_norm=None,
    )
    execution = Execution(compile=is_compiled, accumulate=pieces)
    trainer = Trainer(copy.deepcopy(model), schedule, find_loss(loss), execution)
    for group in trainer.optimiser.param_groups:
        group["fused"] = fused

    def learn(batches: list[Batch]) -> list[float]:
        for batch in batches:
            trainer.learn(batch)
        return trainer.losses[-len(batches) :]

    return learn


class Theirs:
    """open_clip's loop, from its own parts as its main puts them together."""

    def __init__(
        self,
        model: Towers,
        precision: str,
        device: str = "cpu",
        loss: str = "clip",
        pieces: int = 1,
    ) -> None:
        self.loss = open_clip.loss.SigLipLoss() if loss == "siglip" else open_clip.ClipLoss()
        self.towers = copy.deepcopy(model)
        self.network: Any = self.towers.network
        self.network.output_dict = True
        matrices, others = matrices_first(self.network)
        groups = [
            {"params": others, "weight_decay": 0.0},
            {"params": matrices, "weight_decay": DECAY},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), eps=1e-6)
        schedule = cosine_lr(self.optimizer, PEAK, WARMUP, ALL_STEPS)
        self.step, self.losses = 0, []
        self.scheduler = lambda within: schedule(self.step + within)
        self.args = SimpleNamespace(
            device=device,
            precision=precision,
            distill=False,
            accum_freq=pieces,
            skip_scheduler=False,
            grad_clip_norm=None,
            horovod=False,
            rank=0,
            world_size=1,
            batch_size=ROWS,
            log_every_n_steps=1,
            wandb=False,
        )

    def learn(self, batches: list[Batch]) -> list[float]:
        pieces = self.args.accum_freq
        prepared = [self.prepared(batch) for batch in batches]
        loader = Loader(
            [
                piece
                for images, texts in prepared
                for piece in zip(images.chunk(pieces), texts.chunk(pieces), strict=True)
            ]
        )
        data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
        self.losses = []
        parts = (
            self.network,
            data,
            self.loss,
            0,
            self.optimizer,
            None,
            self.scheduler,
            None,
            self.args,
        )
        train_one_epoch(*parts, tb_writer=self)
        self.step += len(batches)
        return self.losses

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """What its loop tells TensorBoard."""
        if name == "train/loss":
            self.losses.append(value)

    def prepared(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised pictures and padded tokens, which its loader makes in other processes."""
        key = id(batch)
        if key not in PREPARED:
            towers: Any = self.towers
            pixels_N3HW = torch.from_numpy(batch.pixels).to(towers.mean.device)
            image_N3HW = (pixels_N3HW.float() - towers.mean) / towers.std
            token_NL = torch.zeros(len(batch.rows), TEXT["context_length"], dtype=torch.long)
            ends = [*batch.starts[1:], len(batch.tokens)]
            for row, (start, end) in enumerate(zip(batch.starts, ends, strict=True)):
                token_NL[row, : end - start] = torch.from_numpy(batch.tokens[start:end])
            PREPARED[key] = image_N3HW, token_NL
        return PREPARED[key]


PREPARED: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


class Loader:
    """Batches as its loop asks for them."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.num_batches, self.num_samples = len(batches), len(batches) * ROWS

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


if __name__ == "__main__":
    begin(main, quick=("ViT",), full=(*NETWORKS, "compiled", "options"))
