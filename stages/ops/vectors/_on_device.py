"""Computes `nearest` by torch on a device such as a GPU: bit for bit what the processor gives.

Tested on torch's "cpu" alone: no GPU was at hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from clipmill.stages.ops.vectors._coarse import Frame, Precision, need_finite
from clipmill.stages.ops.vectors._sift import LANES

# Shapes: N rows, B of a block, D width; U centres; P pairs of a row and a centre near to it, m
# nearest.

SCORES = 2**27  # of a block at a time: 512 MB
PAIRS = 2**16  # decided in float64 at a time: 0.5 GB at D = 512


def nearest_on(
    device: str,
    row_ND: NDArray[np.float32],
    centre_UD: NDArray[np.float32],
    frame: Frame,
    precision: Precision,
    m: int,
    is_distance: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns (N, m) nearest centres, and (N, m) dot products, or minus squared distances."""
    centres = torch.tensor(centre_UD, device=device)
    place_Nm, sure_Nm = np.empty((len(row_ND), m), np.int64), np.empty((len(row_ND), m))
    step = max(1, SCORES // len(centres))
    with _whole_products():
        near = _Near(centres, frame, precision)
        for start in range(0, len(row_ND), step):
            block = slice(start, start + step)
            row_BD = torch.tensor(row_ND[block], device=device)  # Arrow lends it read-only
            row_P, centre_P = near.pairs(row_BD, m)
            parts = zip(row_P.split(PAIRS), centre_P.split(PAIRS), strict=True)
            sure_P = torch.cat([_wide(row_BD[r], centres[c], is_distance) for r, c in parts])
            best_P = _best(row_P, sure_P, m)
            place_Nm[block] = centre_P[best_P].reshape(-1, m).cpu().numpy()
            sure_Nm[block] = sure_P[best_P].reshape(-1, m).cpu().numpy()
    return place_Nm, sure_Nm


class _Near:
    """Centres that coarse scores cannot rule out, as `Scores` and `sift` find them."""

    def __init__(self, centres: torch.Tensor, frame: Frame, precision: Precision) -> None:
        self.frame, self.precision = frame, precision
        self.middle_D = torch.from_numpy(frame.middle_D).to(centres.device)
        self.weight_U = torch.from_numpy(frame.weight_K).to(centres.device)
        parts = [
            self._ready(part.double() - self.middle_D, frame.longest)
            for part in centres.split(PAIRS)
        ]
        self.ready_UD = torch.cat([ready for ready, _ in parts])
        self.lost = max(float(lost.max()) for _, lost in parts)

    def pairs(self, row_BD: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (P,) rows, ascending, and (P,) centres near to them, ascending in each row."""
        rest_BD = row_BD.double() - self.middle_D
        length_B = rest_BD.norm(dim=1).clamp(min=self.frame.least)
        need_finite(length_B)
        ready_BD, lost_B = self._ready(rest_BD, length_B[:, None])
        gap_B, _ = self.frame.gaps(length_B, lost_B, self.lost, self.precision)
        score_BU = (ready_BD @ self.ready_UD.T).float()
        score_BU -= self.frame.ratio(length_B).float()[:, None] * self.weight_U
        least_B = score_BU.topk(m, dim=1).values[:, -1] - gap_B.float()
        row_P, centre_P = (score_BU >= least_B[:, None]).nonzero(as_tuple=True)
        return row_P, centre_P

    def _ready(
        self, rest: torch.Tensor, length: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        unit = (rest / length).float()
        if self.precision == "float32":
            return unit, torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
        half = unit.bfloat16()
        return half, (unit.double() - half.double()).norm(dim=1)


def _wide(a_PD: torch.Tensor, b_PD: torch.Tensor, is_distance: bool) -> torch.Tensor:
    """Returns (P,) dot products, or minus squared distances, summed in the order of `_sift`'s."""
    lane_PS = torch.zeros(len(a_PD), LANES, dtype=torch.float64, device=a_PD.device)
    for a, b in zip(a_PD.split(LANES, dim=1), b_PD.split(LANES, dim=1), strict=True):
        part = -(a.double() - b.double()).square() if is_distance else a.double() * b.double()
        lane_PS[:, : part.shape[1]] += part
    while lane_PS.shape[1] > 1:
        a, b = lane_PS.chunk(2, dim=1)
        lane_PS = a + b
    return lane_PS[:, 0]


def _best(row_P: torch.Tensor, sure_P: torch.Tensor, m: int) -> torch.Tensor:
    """Returns (rows * m,) the pairs of each row's m greatest, of equal ones the first."""
    order_P = sure_P.argsort(descending=True, stable=True)
    order_P = order_P[row_P[order_P].argsort(stable=True)]
    count_B = row_P.bincount()
    begin_P = (count_B.cumsum(0) - count_B)[row_P]  # rows ascend in both orders
    return order_P[torch.arange(len(row_P), device=row_P.device) - begin_P < m]


@contextmanager
def _whole_products() -> Iterator[None]:
    """Keeps all bits of float32 in products and in their sums, which the error bounds assume."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = False, False
    try:
        yield
    finally:
        matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before
