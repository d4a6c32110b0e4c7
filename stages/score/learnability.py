"""Scores how much a learner can still learn of a pair that a reference model knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.stage import NonEmpty, RowFunction, RowStage, Worker, need_types

LEARNABILITY = Column(
    "learnability", pa.float32(), "nats", "The learner's loss less the reference's.", better="high"
)
Temperature = Annotated[float, Meta(ge=0.002, le=10)]


@dataclass(frozen=True, kw_only=True)
class Learnability(RowStage):
    """Contrastive loss of a learner less that of a reference model, in nats; null without either.

    High: the learner fails where the reference does not; noise is hard for both, and counts little.
    Losses are those of score.negclip: InfoNCE, both ways, is minus its score over its tau.

    Source: JEST (Evans et al. 2024), a row by itself. Departs: JEST draws a batch by the losses of
    pairs of rows too.
    Error: that of the scores, over tau: 4e-5 nats at tau 0.01.
    Example: {after: [ingest.image_folder, embed.clip, score.negclip],
      learner: negclip_score, reference: negclip_score, learner_tau: 0.02}
    """

    learner: NonEmpty  # its column of score.negclip
    reference: NonEmpty  # the same of a better model, by as large a batch
    learner_tau: Temperature = 0.01  # `tau` of the learner's score.negclip
    reference_tau: Temperature = 0.01  # the same of the reference

    version = 1
    determinism = "exact"
    writes = (LEARNABILITY,)
    reasons = ("undefined",)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.learner, self.reference)))

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Raises StageError for a column that holds no scores."""
        for key, name in (("learner", self.learner), ("reference", self.reference)):
            do = "name a `negclip_score` of score.negclip"
            need_types(types, [name], f"key `{key}`", do, kinds=(pa.types.is_floating,))

    def open(self, worker: Worker) -> RowFunction:
        return partial(learnability, settings=self)


def learnability(batch: pa.Table, *, settings: Learnability) -> pa.Table:
    """Returns the difference of losses of every row, or a reason."""
    learner, reference = (
        batch[name].cast(pa.float64()) for name in (settings.learner, settings.reference)
    )
    gained = pc.divide(reference, settings.reference_tau)  # minus the loss
    value = pc.subtract(gained, pc.divide(learner, settings.learner_tau))
    undefined = pc.invert(pc.is_finite(value).fill_null(False))
    score = pc.if_else(undefined, None, value).cast(pa.float32())
    reason = pc.if_else(undefined, Learnability.reasons[0], None).cast(REASON_TYPE)
    return pa.table({LEARNABILITY.name: score, REASON.name: reason})
