"""Trains one model in several processes: gathers vectors, sums over ranks, joins batch norms.

The whole batch is the concatenation of the ranks' rows. Each rank computes the loss of its own rows
against all rows and sends gradients of other ranks' vectors back to them, so the sum of gradients
over ranks equals that of one process with the whole batch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, distributed, nn

from clipmill.pipeline.dataset import Rank
from clipmill.pipeline.errors import StageError

# Shapes: N rows of this rank, G rows of all ranks, C channels, R ranks.

WAIT = timedelta(minutes=30)  # for other ranks, which may be storing or compiling


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of ranks; 0 of 1 if it trains alone."""

    rank: int = 0
    of: int = 1

    def gathered(self, local_N: Tensor) -> tuple[Tensor, int]:
        """Returns (G, …), the concatenated tensors of all ranks, and the offset of our rows.

        Ranks may differ in length. Gradients go back to the rank that has the row.
        """
        if self.of == 1:
            return local_N, 0
        sizes = self._sizes(len(local_N))
        starts = list(accumulate(sizes, initial=0))
        return _Gathered.apply(local_N, sizes, self.rank), starts[self.rank]

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum over all ranks, bit-identical on each; no gradient."""
        if self.of > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
        return value

    def any(self, here: bool) -> bool:
        """Returns whether `here` is true on any rank; a collective call of all ranks."""
        return here if self.of == 1 else bool(self.sum(torch.tensor(float(here), device=_device())))

    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over the ranks.

        One all-reduce of one flat tensor, with nothing in parallel: the order of its sums is the
        same in every step and every run.
        """
        if self.of == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def one_batch_norm(self, model: nn.Module) -> None:
        """Makes every batch norm of a model use mean and variance over the rows of all ranks."""
        if self.of == 1:
            return
        for module in list(model.modules()):
            for name, norm in module.named_children():
                if type(norm) is nn.BatchNorm2d:
                    setattr(module, name, _GlobalBatchNorm(norm, self))
                elif isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    found = f"a {type(norm).__name__} in the model, which sees one process's rows"
                    do = "write ranks: 1, or take a model with layer norms, as the ViTs have"
                    raise StageError(found, "key `ranks`", do)

    def _sizes(self, size: int) -> list[int]:
        sizes = torch.zeros(self.of, dtype=torch.int64, device=_device())
        sizes[self.rank] = size
        distributed.all_reduce(sizes)
        return sizes.tolist()


ALONE = Ranks()


@contextlib.contextmanager
def together(rank: Rank, device: str) -> Iterator[Ranks]:
    """Yields the ranks of a launch, connected: gloo between CPUs, NCCL between GPUs."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=rank.rendezvous,
        rank=rank.rank,
        world_size=rank.of,
        timeout=WAIT,
    )
    try:
        yield Ranks(rank.rank, rank.of)
    finally:
        distributed.destroy_process_group()


def _device() -> torch.device:
    """Returns the device of this group's tensors."""
    is_gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_gpu else torch.device("cpu")


class _Gathered(torch.autograd.Function):
    """An all-gather along the first axis; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, local_N: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = local_N.new_zeros(max(sizes), *local_N.shape[1:])  # all ranks send equal shapes
        padded[: len(local_N)] = local_N
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient_G: Tensor) -> tuple[Tensor, None, None]:
        gradient_G = gradient_G.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient_G)
        start = sum(ctx.sizes[: ctx.rank])
        return gradient_G[start : start + ctx.sizes[ctx.rank]], None, None


class _GlobalBatchNorm(nn.BatchNorm2d):
    """A batch norm over the rows of all ranks; shares weights and statistics with `norm`.

    Source: Chan, Golub and LeVeque 1979, (2.1): means and squared deviations of parts joined.
    """

    def __init__(self, norm: nn.BatchNorm2d, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.ranks = norm.weight, norm.bias, ranks
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        x = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))
        mean_C = x.mean(dim=(0, 2, 3))
        squares_C = (x - mean_C[:, None, None]).square().sum(dim=(0, 2, 3))
        count_C = torch.full_like(mean_C, x.numel() / len(mean_C))
        ours_13C = torch.stack([count_C, mean_C, squares_C])[None]
        of_ranks_R3C = _Gathered.apply(ours_13C, [1] * self.ranks.of, self.ranks.rank)
        count_RC, mean_RC, squares_RC = of_ranks_R3C.unbind(1)
        all_C = count_RC.sum(0)
        mean_C = (count_RC * mean_RC).sum(0) / all_C
        squares_C = (squares_RC + count_RC * (mean_RC - mean_C).square()).sum(0)
        if self.track_running_stats:  # as in torch: the unbiased variance
            self._update_running(mean_C.detach(), (squares_C / (all_C - 1)).detach())
        factor_C = self.weight * (squares_C / all_C + self.eps).rsqrt()
        shift_C = self.bias - mean_C * factor_C
        return (x * factor_C[:, None, None] + shift_C[:, None, None]).to(x_NCHW.dtype)

    def _update_running(self, mean_C: Tensor, variance_C: Tensor) -> None:
        share = self.momentum or 0.0
        for running, value_C in ((self.running_mean, mean_C), (self.running_var, variance_C)):
            if running is not None:
                running.lerp_(value_C.to(running.dtype), share)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
