"""Trains one model in several processes: gathers vectors, sums over ranks, joins batch norms.

The whole batch is the concatenation of the ranks' rows. Each rank computes the loss of its own rows
against all rows and sends gradients of other ranks' vectors back to them, so the sum of gradients
over ranks equals that of one process with the whole batch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

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
        sizes = torch.zeros(self.of, dtype=torch.int64, device=_device())
        sizes[self.rank] = len(local_N)
        distributed.all_reduce(sizes)
        missing = max(1, int(sizes.max())) - len(local_N)  # all send one shape, of a row at least
        padded = nn.functional.pad(local_N, (*[0] * (2 * local_N.ndim - 1), missing))
        parts = zip(all_gather(padded), sizes.tolist(), strict=True)
        gathered = torch.cat([part[:size] for part, size in parts])
        return gathered, int(sizes[: self.rank].sum())

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
                    setattr(module, name, _GlobalBatchNorm(norm))
                elif isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    found = f"a {type(norm).__name__} in the model, which sees one process's rows"
                    do = "write ranks: 1, or take a model with layer norms, as the ViTs have"
                    raise StageError(found, "key `ranks`", do)


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


class _GlobalBatchNorm(nn.BatchNorm2d):
    """A batch norm over the rows of all ranks; shares weights and statistics with `norm`.

    Source: Chan, Golub and LeVeque 1979, (2.1): means and squared deviations of parts joined.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        x = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))
        mean_C = x.mean(dim=(0, 2, 3))
        squares_C = (x - mean_C[:, None, None]).square().sum(dim=(0, 2, 3))
        count_C = torch.full_like(mean_C, x.numel() / len(mean_C))
        ours_3C = torch.stack([count_C, mean_C, squares_C])
        count_RC, mean_RC, squares_RC = torch.stack(all_gather(ours_3C)).unbind(1)
        all_C = count_RC.sum(0)
        mean_C = (count_RC * mean_RC).sum(0) / all_C
        squares_C = (squares_RC + count_RC * (mean_RC - mean_C).square()).sum(0)
        with torch.no_grad():
            norm: Any = self  # for mypy: no norm here lacks statistics or a momentum
            norm.running_mean.lerp_(mean_C.to(norm.running_mean.dtype), norm.momentum)
            variance_C = squares_C / (all_C - 1)  # unbiased, as in torch
            norm.running_var.lerp_(variance_C.to(norm.running_var.dtype), norm.momentum)
            norm.num_batches_tracked.add_(1)
        factor_C = self.weight * (squares_C / all_C + self.eps).rsqrt()
        shift_C = self.bias - mean_C * factor_C
        return (x * factor_C[:, None, None] + shift_C[:, None, None]).to(x_NCHW.dtype)
