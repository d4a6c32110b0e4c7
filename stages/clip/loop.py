"""The training loop: one step, its state, and the run from the last checkpoint on."""

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from clipmill.pipeline.errors import StageError
from clipmill.stages.clip.batch import Batch, Source
from clipmill.stages.clip.distributed import ALONE, Ranks
from clipmill.stages.clip.embedded import Embedded
from clipmill.stages.clip.losses import find_loss
from clipmill.stages.clip.patches import Patches
from clipmill.stages.clip.telemetry import Log
from clipmill.stages.clip.towers import MAX_LOG_SCALE, Towers, matrices_first
from clipmill.stages.models.saved import half

# Shapes: N rows and M texts of this process, B rows of the batch; N images or texts, T tokens of
# all texts, D width of the embedding.

Precision = Literal["bf16", "float32", "float64"]  # float64: the reference, of a model in it


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps, optimiser and precision of a training; all of them change the weights."""

    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    precision: Precision
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    max_norm: float | None = 1.0  # of the gradient of all weights; None: never clipped


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Execution options of a step: the mathematics stays, at most the rounding differs."""

    ranks: Ranks = ALONE
    device: str = "cpu"
    accumulate: int = 1  # pieces in which a rank's rows are embedded
    compile: bool = False  # the towers, by torch.compile
    tile: int | None = None  # of the loss: see Embedded
    checkpoint_activations: bool = False  # recompute a layer's activations in its backward


PLAIN = Execution()


class Trainer:
    """A model, its optimiser, and the loss of every step so far.

    Source: AdamW with decay on matrices only, as open_clip and DataComp train.
    """

    def __init__(
        self,
        model: Towers,
        schedule: Schedule,
        loss: Callable[[Embedded], Tensor] | None = None,
        execution: Execution = PLAIN,
        average: float | None = None,  # decay a step of a running mean of the weights
        shares: Mapping[nn.Parameter, float] | None = None,  # of the learning rate; null: all 1
        own: nn.Module | None = None,  # weights and memory of the loss
    ) -> None:
        self.model, self.schedule, self.execution = model, schedule, execution
        self.loss_of, self.own = loss or find_loss("clip"), own
        self.weights = dict(model.named_parameters())
        if own is not None:
            self.weights |= {f"loss.{name}": weight for name, weight in own.named_parameters()}
        execution.ranks.one_batch_norm(model)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.locked_norms = [m for m in norms if m.affine and not m.weight.requires_grad]
        self.patches = [m for m in model.modules() if isinstance(m, Patches)]
        if execution.accumulate > 1 and norms:  # they would see a piece instead of the batch
            found = "a model with batch norm: in pieces it would be another model"
            do = "write accumulate: 1 and more `ranks`, or take a model with layer norms (a ViT)"
            raise StageError(found, "key `accumulate`", do)
        if execution.checkpoint_activations:
            _checkpointed(model)
        self.embed_images, self.embed_texts = model.embed_images, model.embed_texts
        if execution.compile:
            _check_compiler(execution.device)
            self.embed_images = torch.compile(model.embed_images, dynamic=False)
            self.embed_texts = torch.compile(model.embed_texts, dynamic=True)  # lengths differ
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for module in (model,) if own is None else (model, own):
            decays = schedule.weight_decay, 0.0
            for weights, decay in zip(matrices_first(module), decays, strict=True):
                for weight in weights:
                    groups.setdefault((decay, (shares or {}).get(weight, 1.0)), []).append(weight)
        self.optimiser = torch.optim.AdamW(
            [{"params": g, "weight_decay": d, "share": s} for (d, s), g in groups.items()],
            betas=(schedule.beta1, schedule.beta2),
            eps=schedule.eps,
            fused=True,
        )
        self.average: AveragedModel | None = None
        if average is not None:
            averaged = get_ema_multi_avg_fn(average)
            self.average = AveragedModel(model, multi_avg_fn=averaged, use_buffers=True)
            self.decay = average
        self.losses: list[float] = []
        self.scales: list[float] = []
        # Samples whose picture was replaced so far, by reason; None without replacement.
        self.replaced: dict[str, int] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the towers compute."""
        precision = self.schedule.precision
        return half(self.execution.device) if precision == "bf16" else getattr(torch, precision)

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return len(self.losses)

    def learn(self, batch: Batch) -> Tensor:
        """Takes one step; returns (N,) each row's loss before it. A NaN loss changes no weight.

        The rows are this rank's; the update and the stored loss are the whole batch's.
        """
        self.model.train()
        for norm in self.locked_norms:  # which keep their statistics
            norm.eval()
        for patches in self.patches:
            views = range(len(batch.pixels) // len(batch.rows))
            index = np.concatenate([batch.index + (view << 48) for view in views])
            patches.begin(self.step, index, self.execution.device)
        begin = getattr(self.own, "begin", None)
        if begin is not None:
            begin(self, self._put(batch.pixels))
        self.optimiser.zero_grad()
        loss_N = self.loss_of(self.embedded(*self.embed(batch), batch))
        weight_N = self._put(batch.weights)
        ranks = self.execution.ranks
        loss = (loss_N * weight_N).sum() / ranks.sum(weight_N.sum())
        loss.backward()
        of_batch = ranks.sum(loss).item()
        if not math.isfinite(of_batch):
            return loss_N.detach() * weight_N
        weights = list(self.weights.values())
        ranks.sum_gradients(weights)
        if self.schedule.max_norm is not None:
            nn.utils.clip_grad_norm_(weights, self.schedule.max_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(self.step) * group["share"]
        self.optimiser.step()
        with torch.no_grad():
            self.model.log_scale.clamp_(0, MAX_LOG_SCALE)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.losses.append(of_batch)
        self.scales.append(self.model.scale.item())
        return loss_N.detach()

    def note(self, replaced: Mapping[str, int]) -> None:
        """Adds all ranks' counts of pictures that do not decode, by reason."""
        here = torch.tensor(list(replaced.values()), device=self.execution.device)
        before = self.replaced or dict.fromkeys(replaced, 0)
        counts = self.execution.ranks.sum(here).tolist()
        pairs = zip(replaced, counts, strict=True)
        self.replaced = {reason: before[reason] + count for reason, count in pairs}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns (N, D) and (M, D): all views of this rank's images and texts, with their graph.

        In pieces, a backward embeds each piece once more, so that it holds one piece's activations.

        Source: GradCache (Gao et al. 2021), by torch's checkpoint.
        """
        pixels = self._put(batch.pixels)
        tokens, starts = self._put(batch.tokens), self._put(batch.starts)
        dtype, count = self.dtype, self.execution.accumulate
        if count == 1:
            return self.embed_images(pixels, dtype), self.embed_texts(tokens, starts, dtype)
        size = math.ceil(len(pixels) / count)
        images = [(row, pixels[row : row + size]) for row in range(0, len(pixels), size)]
        texts = text_pieces(tokens, starts, count)
        image_ND = _in_pieces(self._embed_from, images, dtype)
        return image_ND, _in_pieces(self.embed_texts, texts, dtype)

    def _embed_from(self, first: int, pixels_N3HW: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeds a piece of a batch's images, from row `first` on."""
        for patches in self.patches:
            patches.place = first
        return self.embed_images(pixels_N3HW, dtype)

    def embedded(self, image_ND: Tensor, text_MD: Tensor, batch: Batch) -> Embedded:
        """Returns the input of the loss: these rows against those of all ranks."""
        ranks = self.execution.ranks
        image_ND, *more_images = image_ND.split(len(batch.rows))
        image_GD, first = ranks.gathered(image_ND)
        negatives: dict[str, Tensor] = {}
        if batch.negative_of is not None:
            last = len(text_MD) - len(batch.negative_of)
            text_MD, negative_ND = text_MD.tensor_split([last])
            row_of_N = self._put(batch.negative_of) + first
            negatives["negative_KD"] = ranks.gathered(negative_ND)[0]
            negatives["negative_of_K"] = ranks.gathered(row_of_N)[0]
        text_MD, *more_texts = text_MD.split(len(batch.image_of))
        row_N = torch.arange(first, first + len(image_ND), device=image_ND.device)
        image_of_M = self._put(batch.image_of) + first
        teacher = {name: self._put(values) for name, values in batch.teacher.items()}
        return Embedded(
            image_ND=image_ND,
            text_MD=text_MD,
            image_GD=image_GD,
            text_HD=ranks.gathered(text_MD)[0],
            row_N=row_N,
            image_of_M=image_of_M,
            image_of_H=ranks.gathered(image_of_M)[0],
            scale=self.model.scale,
            bias=self.model.bias,
            index_N=self._put(batch.index),
            teacher=teacher,
            teacher_all={name: ranks.gathered(values)[0] for name, values in teacher.items()},
            image_views=[(view, ranks.gathered(view)[0]) for view in more_images],
            text_views=[(view, ranks.gathered(view)[0]) for view in more_texts],
            step=self.step,
            own=self.own,
            gather=lambda values: ranks.gathered(values.detach())[0],
            tile=self.execution.tile,
            **negatives,
        )

    def rate(self, step: int) -> float:
        plan = self.schedule
        peak, warmup = plan.learning_rate, plan.warmup_steps
        return learning_rate(step, peak=peak, warmup_steps=warmup, steps=plan.steps)

    def state(self) -> dict[str, Tensor]:
        """Returns everything that the next step depends on, by name."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.own is not None:
            state |= {f"loss.{name}": value for name, value in self.own.state_dict().items()}
        for name, weight in self.weights.items():
            for key, value in self.optimiser.state[weight].items():
                state[f"optimiser.{name}.{key}"] = value
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["scales"] = torch.tensor(self.scales, dtype=torch.float64)
        for reason, count in (self.replaced or {}).items():
            state[f"replaced.{reason}"] = torch.tensor(count)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Sets the trainer to a state, bit for bit."""
        self.losses, self.scales = state["losses"].tolist(), state["scales"].tolist()
        counts = _below("replaced.", state).items()
        self.replaced = {reason: int(count) for reason, count in counts} or None
        self.model.load_state_dict(_below("model.", state))
        if self.average is not None:
            self.average.load_state_dict(_below("average.", state))
        if self.own is not None:
            self.own.load_state_dict(_below("loss.", state))
        for name, weight in self.weights.items():
            for key, value in _below(f"optimiser.{name}.", state).items():
                # In the weight's memory layout: another layout sums in another order.
                like = weight if value.ndim else value
                moment = torch.empty_like(like, device=weight.device).detach()
                self.optimiser.state[weight][key] = moment.copy_(value)

    def _put(self, values: np.ndarray) -> Tensor:
        """Moves an array to the model's device."""
        return torch.from_numpy(values).to(self.execution.device, non_blocking=True)


def train(
    trainer: Trainer,
    batches: Source,
    stage: str,
    every: int,
    store: Callable[[Trainer], None],
    log: Log | None = None,
    until: int | None = None,
) -> None:
    """Takes the schedule's steps that remain, or those `until`; calls `store` every `every`."""
    ranks, steps = trainer.execution.ranks, until or trainer.schedule.steps
    log = log or Log(steps=trainer.schedule.steps, batch_size=batches.size)
    while trainer.step < steps:
        before = trainer.step
        began = log.clock()
        batch = batches.of_rank(before, ranks.rank, ranks.of)
        log.waited(log.clock() - began, partial(batches.files, batch.rows))
        loss_N = trainer.learn(batch)
        if trainer.step == before:
            raise nonfinite_error(ranks, loss_N, batch, batches, stage, before)
        if batch.replaced is not None:
            trainer.note(batch.replaced)
            log.replaced = sum((trainer.replaced or {}).values())
        log.step(trainer.step, trainer.losses[-1], trainer.rate(before), trainer.scales[-1])
        if trainer.step % every == 0 and trainer.step < steps:
            store(trainer)


def nonfinite_error(
    ranks: Ranks, loss_N: Tensor, batch: Batch, batches: Source, stage: str, step: int
) -> StageError:
    """Returns the error for a NaN or infinite loss; it names the step and all ranks' shards."""
    row_B = ranks.gathered(torch.from_numpy(batch.rows).to(loss_N.device))[0].cpu().numpy()
    bad_B = ~torch.isfinite(ranks.gathered(loss_N)[0]).cpu().numpy()
    if bad_B.all() or not bad_B.any():  # the model has diverged: no row is to blame
        rows, do = row_B, "lower `learning_rate`, or raise `warmup_steps`"
        if not ranks.sum(torch.from_numpy(batch.weights).sum().to(loss_N.device)):
            do = "give some rows of each batch a `loss_weight` above 0"
    else:
        rows, do = row_B[bad_B], "look at `loss_weight` of those shards' rows"
    files = batches.files(rows)
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    count = "every row" if len(rows) == len(row_B) else f"{len(rows)} of {len(row_B)} rows"
    where = f"stage '{stage}', step {step}, shard {named}"
    return StageError(f"the loss of {count} is NaN or infinite", where, do)


def _check_compiler(device: str) -> None:
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if torch.device(device).type == "cpu" and not any(map(shutil.which, filter(None, names))):
        found = "no C++ compiler, which torch.compile needs on a processor"
        raise StageError(found, "key `compile`", "install g++ or clang++, or leave the key out")


def _checkpointed(model: Towers) -> None:
    network: Any = model.network
    if not hasattr(network, "set_grad_checkpointing"):
        found = "a model that keeps all of its activations"
        do = "leave the key out: nano needs little memory"
        raise StageError(found, "key `checkpoint_activations`", do)
    network.set_grad_checkpointing(True)


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Returns the rate of a step (from 0): linear to the peak, then half a cosine down.

    Source: open_clip's `cosine_lr`: the first step has peak / warmup_steps, and no step has 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * done)) / 2


def _in_pieces(embed: Callable[..., Tensor], pieces: Sequence[Any], dtype: torch.dtype) -> Tensor:
    # The last first: backward goes the other way, and sums gradients in the order of the pieces.
    parts = [
        checkpoint(embed, *piece, dtype, use_reentrant=False, preserve_rng_state=False)
        for piece in reversed(pieces)
    ]
    return torch.cat(parts[::-1])


def text_pieces(token_T: Tensor, starts_N: Tensor, pieces: int) -> list[tuple[Tensor, Tensor]]:
    """Splits texts into `pieces` runs of nearly equal size; returns tokens and starts of each."""
    ends = [int(starts[0]) for starts in starts_N.chunk(pieces)[1:]] + [len(token_T)]
    return [
        (token_T[int(starts[0]) : end], starts - starts[0])
        for starts, end in zip(starts_N.chunk(pieces), ends, strict=True)
    ]
