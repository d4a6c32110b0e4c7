"""Reads an export as cached.py does; a batch is drawn from several by the losses of their pairs.

Each step embeds all rows of the super-batch first, without gradients: log.jsonl's data_wait_s has
the time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from clipmill.metadata.uid import mixed, uniform
from clipmill.stages.clip.batch import Batch, Reading, part_of
from clipmill.stages.readers import cached

# Shapes: S rows of the super-batch, D width of the embedding, C chunks of a batch.

CHUNKS = 16
prepare = cached.prepare


def batches(
    reading: Reading,
    prepared: Sequence[Mapping[str, Any]],
    *,
    size: int,
    seed: int,
    threads: int,
    trainer: Any,
) -> "Jest":
    """Returns the batches of a seed, which depend on the trainer's weights at each step."""
    way: dict[str, Any] = {"size": size, "seed": seed, "threads": threads, "trainer": trainer}
    return Jest(cached.batches(reading, prepared, **way), trainer)


class Jest:
    """Batches of rows of which the learner's loss is high and the reference's is low.

    Source: JEST (Evans et al. 2024), with 16 chunks and the sigmoid loss of pairs; the draw of a
    chunk by a re-implementation of others. Departs: of the reference the loss of a row and its own
    text alone, a column, where theirs has that of every pair.
    Error: memory and time of (S, S) losses.
    """

    def __init__(self, rows: cached.Batches, trainer: Any) -> None:
        self.rows, self.trainer, self.size = rows, trainer, rows.size
        self.files, self.close = rows.files, rows.close

    def of_rank(self, n: int, rank: int, ranks: int) -> Batch:
        """Returns a rank's rows of batch n; embeds its part of the super-batch."""
        row_S = self.rows.super_batch(n)
        image_SD, text_SD = self.embedded(row_S[part_of(len(row_S), rank, ranks)], n)
        model = self.trainer.model
        with torch.no_grad():
            cost_SS = pair_costs(image_SD, text_SD, model.scale, model.bias).double().cpu().numpy()
        np.einsum("ii->i", cost_SS)[:] -= self.rows.reference_N[row_S]
        coin_S = self.rows.coins(row_S, f"jest {n}")
        place_B = np.array(chosen(cost_SS, coin_S, self.size))
        if rank:  # all take the first one's, should their last bits differ
            place_B = np.zeros_like(place_B)
        taken_B = self.trainer.execution.ranks.sum(torch.from_numpy(place_B).to(image_SD.device))
        row_B = row_S[taken_B.cpu().numpy()]
        return self.rows.of_rows(row_B[part_of(self.size, rank, ranks)], n)

    def embedded(self, row_N: NDArray[np.int64], n: int) -> tuple[Tensor, Tensor]:
        """Returns (S, D) and (S, D), vectors of all ranks' rows, their first views, in pieces of a
        step's."""
        trainer, model = self.trainer, self.trainer.model
        device, ranks = trainer.execution.device, trainer.execution.ranks
        size = -(-self.size // (ranks.of * trainer.execution.accumulate))
        model.eval()
        images, texts = [], []
        with torch.no_grad():
            for first in range(0, len(row_N), size):
                batch = self.rows.of_rows(row_N[first : first + size], n)
                views = len(batch.rows)  # of images, and of texts, which are followed by others
                end = np.append(batch.starts, len(batch.tokens))[views]
                token_T = torch.from_numpy(batch.tokens[:end]).to(device)
                start_N = torch.from_numpy(batch.starts[:views]).to(device)
                pixels = torch.from_numpy(batch.pixels[:views]).to(device)
                images.append(model.embed_images(pixels, trainer.dtype))
                texts.append(model.embed_texts(token_T, start_N, trainer.dtype))
            return ranks.gathered(torch.cat(images))[0], ranks.gathered(torch.cat(texts))[0]


def pair_costs(image_SD: Tensor, text_SD: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Returns (S, S) nats of each image with each text: of saying rightly if they are a pair."""
    logit_SS = scale * image_SD @ text_SD.T
    logit_SS = logit_SS if bias is None else logit_SS + bias
    sign_SS = 2 * torch.eye(len(logit_SS), device=logit_SS.device) - 1
    return -logsigmoid(sign_SS * logit_SS)


def chosen(cost_SS: NDArray[np.float64], coin_S: NDArray[np.uint64], size: int) -> list[int]:
    """Returns the places of `size` rows: a chunk at random, the others each by what is taken.

    A chunk is drawn without replacement by the softmax of `heights`: so are the largest sums of
    these and a Gumbel number each.
    """
    taken: list[int] = []
    for chunk in range(CHUNKS):
        draw_S = uniform(mixed(coin_S ^ np.uint64(chunk + 1))) + 2.0**-54
        height_S = -np.log(-np.log(draw_S)) + (heights(cost_SS, taken) if taken else 0)
        height_S[taken] = -np.inf
        count = size * (chunk + 1) // CHUNKS - len(taken)
        taken += np.argsort(-height_S, kind="stable")[:count].tolist()
    return taken


def heights(cost_SS: NDArray[np.float64], taken: Sequence[int]) -> NDArray[np.float64]:
    """Returns (S,) each row's own cost, and with those taken its cost both ways."""
    both_S = cost_SS[:, taken].sum(1) + cost_SS[taken].sum(0)
    own_S: NDArray[np.float64] = cost_SS.diagonal()
    return own_S + both_S
