"""The training loop: one step, its state, and the run from wherever it was stopped."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import StageError
from pipeline.stage import untold
from stages.clip.embedded import whole
from stages.clip.loader import Batch, Batches
from stages.clip.losses import MAX_LOG_SCALE, find_loss
from stages.clip.schedule import learning_rate
from stages.clip.towers import Towers, matrices_first

Precision = Literal["bf16", "float32"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "float32": torch.float32}
MAX_NORM = 1.0  # of the gradient of all weights


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps, learning rate, decay and precision of a training."""

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    precision: Precision


class Trainer:
    """A model, its optimiser, and the loss of every step so far.

    Source: AdamW (0.9, 0.98), eps 1e-6, decay on matrices only, as open_clip and DataComp train;
    gradients are clipped to norm 1, which DataComp does not.
    """

    def __init__(self, model: Towers, schedule: Schedule) -> None:
        self.model, self.schedule = model, schedule
        matrices, others = matrices_first(model)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": schedule.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-6,
            fused=True,
        )
        self.loss_of = find_loss("clip")
        self.losses: list[float] = []
        self.scales: list[float] = []

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.losses)

    def learn(self, batch: Batch) -> Tensor:
        """One step; (B,) the loss of every row before it. Nothing is learnt where one is NaN."""
        self.model.train()
        loss_B = self.loss(batch)
        weight_B = torch.from_numpy(batch.weights)
        loss = (loss_B * weight_B).sum() / weight_B.sum()
        if not math.isfinite(loss.item()):
            return loss_B.detach() * weight_B
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimiser.step()
        with torch.no_grad():
            self.model.log_scale.clamp_(0, MAX_LOG_SCALE)
        self.losses.append(loss.item())
        self.scales.append(self.model.scale.item())
        return loss_B.detach()

    def loss(self, batch: Batch) -> Tensor:
        """(B,) the loss of every row, with gradients."""
        dtype = DTYPES[self.schedule.precision]
        image_BD = self.model.embed_images(torch.from_numpy(batch.pixels), dtype)
        token_T, start_B = torch.from_numpy(batch.tokens), torch.from_numpy(batch.starts)
        text_BD = self.model.embed_texts(token_T, start_B, dtype)
        return self.loss_of(whole(image_BD, text_BD, self.model.scale))

    def rate(self, step: int) -> float:
        schedule = self.schedule
        return learning_rate(
            step,
            peak=schedule.learning_rate,
            warmup_steps=schedule.warmup_steps,
            steps=schedule.steps,
        )

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, weight in self.model.named_parameters():
            for key, value in self.optimiser.state[weight].items():
                state[f"optimiser.{name}.{key}"] = value
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["scales"] = torch.tensor(self.scales, dtype=torch.float64)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Sets the trainer to a state, bit for bit."""
        self.losses, self.scales = state["losses"].tolist(), state["scales"].tolist()
        self.model.load_state_dict(_below("model.", state))
        for name, weight in self.model.named_parameters():
            for key, value in _below(f"optimiser.{name}.", state).items():
                # In the weight's own memory order: another one sums in another order.
                moment = torch.empty_like(weight if value.ndim else value).detach()
                self.optimiser.state[weight][key] = moment.copy_(value)


def train(
    trainer: Trainer,
    batches: Batches,
    stage: str,
    every: int,
    store: Callable[[Trainer], None],
    tell: Callable[..., None] = untold,
) -> None:
    """Steps up to the last of the schedule; `store` is called after every `every` of them."""
    while trainer.step < trainer.schedule.steps:
        batch = batches[trainer.step]
        before = trainer.step
        loss_B = trainer.learn(batch)
        if trainer.step == before:
            raise no_number(loss_B, batch, batches, stage, trainer.step)
        tell(trainer.step, trainer.schedule.steps, "steps", loss=trainer.losses[-1])
        if trainer.step % every == 0 and trainer.step < trainer.schedule.steps:
            store(trainer)


def no_number(loss_B: Tensor, batch: Batch, batches: Batches, stage: str, step: int) -> StageError:
    """The error for a loss that is NaN or infinite: names the step and the shards."""
    bad_B = ~torch.isfinite(loss_B).numpy()
    if bad_B.all() or not bad_B.any():  # a model that has diverged blames no row
        rows, do = batch.rows, "lower `learning_rate`, or raise `warmup_steps`"
    else:
        rows, do = batch.rows[bad_B], "look at `loss_weight` of those shards' rows"
    files = batches.files(rows)
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    count = "every row" if len(rows) == len(batch.rows) else f"{len(rows)} of {len(bad_B)} rows"
    return StageError(
        found=f"the loss of {count} is NaN or infinite",
        where=f"stage '{stage}', step {step}, shard {named}",
        do=do,
    )


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
