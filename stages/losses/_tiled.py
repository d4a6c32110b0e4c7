"""Sums over a row's logits, a tile of columns at a time: the (N, G) logits never exist whole.

Backward computes each tile again. It needs the vectors, which exist anyway, and one number per row:
linear in the rows, and the same for any tile and any number of processes. The largest temporary is
(N, tile).

Source: Inf-CL (Cheng et al. 2024) tiles the log-sum-exp; SigLIP (Zhai et al. 2023), section 3.2,
chunks its own sum. Both recompute here, as FlashAttention (Dao et al. 2022) does.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

# Shapes: N rows, G columns (vectors of the other side), T columns of a tile, D and E widths.

Gradients = tuple[Tensor | None, ...]


def log_sum_exp(row_ND: Tensor, column_GD: Tensor, scale: Tensor, tile: int | None) -> Tensor:
    """Returns (N,) nats: the log of each row's sum of exp(scale cosine) over the columns.

    Without a tile, the logits exist whole.
    """
    if tile is None:
        return (scale * row_ND @ column_GD.T).logsumexp(1)
    by_row_N: Tensor = _LogSumExps.apply(row_ND, column_GD, scale, tile, False)[0]
    return by_row_N


def log_sum_exps(
    row_ND: Tensor, column_GD: Tensor, scale: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Returns `log_sum_exp` of the rows and (G,) of the columns, in one pass over the tiles."""
    by_row_N, by_column_G = _LogSumExps.apply(row_ND, column_GD, scale, tile, True)
    return by_row_N, by_column_G


class _LogSumExps(Function):
    @staticmethod
    def forward(
        ctx: Any, row_ND: Tensor, column_GD: Tensor, scale: Tensor, tile: int, both: bool
    ) -> tuple[Tensor, Tensor | None]:
        scaled_ND = scale * row_ND
        by_row_N = torch.full_like(row_ND[:, 0], -torch.inf)
        by_column_G = torch.empty_like(column_GD[:, 0]) if both else None
        for part in _tiles(column_GD, tile):
            logit_NT = scaled_ND @ column_GD[part].T
            by_row_N = torch.logaddexp(by_row_N, logit_NT.logsumexp(1))
            if by_column_G is not None:
                by_column_G[part] = logit_NT.logsumexp(0)
        ctx.save_for_backward(row_ND, column_GD, scale, by_row_N, by_column_G)
        ctx.tile = tile
        return by_row_N, by_column_G

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor, slope_G: Tensor | None) -> Gradients:
        row_ND, column_GD, scale, by_row_N, by_column_G = ctx.saved_tensors
        scaled_ND = scale * row_ND
        to_scaled_ND, to_column_GD = torch.zeros_like(row_ND), torch.empty_like(column_GD)
        for part in _tiles(column_GD, ctx.tile):
            logit_NT = scaled_ND @ column_GD[part].T
            share_NT = (logit_NT - by_row_N[:, None]).exp_().mul_(slope_N[:, None])
            if slope_G is not None:
                share_NT += logit_NT.sub_(by_column_G[part]).exp_().mul_(slope_G[part])
            to_scaled_ND.addmm_(share_NT, column_GD[part])
            to_column_GD[part] = share_NT.T @ scaled_ND
        return to_scaled_ND * scale, to_column_GD, (to_scaled_ND * row_ND).sum(), None, None


class SigmoidCosts(Function):
    """`apply` returns (N,) nats: the sum over columns of -log sigmoid(z logit), each column times
    its weight, by default 1; z is 1 if `owner_G` is the row's number, else -1."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        row_ND, column_GD, weight_G, scale, bias, row_N, owner_G, tile = inputs
        scaled_ND = scale * row_ND
        cost_N = torch.zeros_like(row_ND[:, 0])
        for part in _tiles(column_GD, tile):
            logit_NT = (scaled_ND @ column_GD[part].T).add_(bias)
            logit_NT *= _signs(row_N, owner_G[part], logit_NT)
            cost_NT = logsigmoid(logit_NT)
            cost_N -= cost_NT.sum(1) if weight_G is None else cost_NT @ weight_G[part]
        ctx.save_for_backward(*inputs[:-1])
        ctx.tile = tile
        return cost_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor) -> Gradients:
        row_ND, column_GD, weight_G, scale, bias, row_N, owner_G = ctx.saved_tensors
        scaled_ND = scale * row_ND
        to_scaled_ND, to_column_GD = torch.zeros_like(row_ND), torch.empty_like(column_GD)
        to_bias = torch.zeros_like(bias)
        for part in _tiles(column_GD, ctx.tile):
            logit_NT = (scaled_ND @ column_GD[part].T).add_(bias)
            sign_NT = _signs(row_N, owner_G[part], logit_NT)
            share_NT = logit_NT.mul_(sign_NT).neg_().sigmoid_().mul_(sign_NT)
            share_NT.mul_(-slope_N[:, None])
            if weight_G is not None:
                share_NT.mul_(weight_G[part])
            to_scaled_ND.addmm_(share_NT, column_GD[part])
            to_column_GD[part] = share_NT.T @ scaled_ND
            to_bias += share_NT.sum()
        to_scale = (to_scaled_ND * row_ND).sum()
        return to_scaled_ND * scale, to_column_GD, None, to_scale, to_bias, None, None, None


class Attended(Function):
    """`apply` returns (N, E) the mean of the values, weighted by each query's softmax over the
    keys; only the values get gradients."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query_ND, key_GD, value_GE, scale, tile = inputs
        scaled_ND = scale * query_ND
        sum_N = torch.full_like(query_ND[:, 0], -torch.inf)
        for part in _tiles(key_GD, tile):
            sum_N = torch.logaddexp(sum_N, (scaled_ND @ key_GD[part].T).logsumexp(1))
        mean_NE = value_GE.new_zeros(len(query_ND), value_GE.shape[1])
        for part in _tiles(key_GD, tile):
            mean_NE.addmm_(_shares(scaled_ND, key_GD[part], sum_N), value_GE[part])
        ctx.save_for_backward(query_ND, key_GD, sum_N)
        ctx.scale, ctx.tile = scale, tile
        return mean_NE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_NE: Tensor) -> Gradients:
        query_ND, key_GD, sum_N = ctx.saved_tensors
        scaled_ND = ctx.scale * query_ND
        to_value_GE = slope_NE.new_empty(len(key_GD), slope_NE.shape[1])
        for part in _tiles(key_GD, ctx.tile):
            to_value_GE[part] = _shares(scaled_ND, key_GD[part], sum_N).T @ slope_NE
        return None, None, to_value_GE, None, None


def _shares(scaled_ND: Tensor, column_TD: Tensor, sum_N: Tensor) -> Tensor:
    """Returns (N, T) of the row's softmax, from the log of its sum."""
    return (scaled_ND @ column_TD.T).sub_(sum_N[:, None]).exp_()


def _tiles(column_GD: Tensor, tile: int) -> Iterator[slice]:
    return (slice(start, start + tile) for start in range(0, len(column_GD), tile))


def _signs(row_N: Tensor, owner_T: Tensor, like: Tensor) -> Tensor:
    """Returns (N, T): 1 if a column is the row's own, else -1."""
    return (row_N[:, None] == owner_T).to(like.dtype).mul_(2).sub_(1)
