"""Weighs a pair and its generated caption by how well they fit, as ALIP's two gates do."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import Column
from clipmill.pipeline.dataset import Context, Inputs, State
from clipmill.pipeline.stage import DatasetStage, NonEmpty, need_types
from clipmill.stages.ops.tables.rows import added, with_reason
from clipmill.stages.score._sums import mean_of, whole

# Shapes: N rows, 3 cosines: of text and caption, image and text, image and caption.

UNIT = "0 to e^4"


@dataclass(frozen=True, kw_only=True)
class Alip(DatasetStage):
    """ALIP's gates of each row, from three cosines; null where one of these is.

    `sample_gate` is min(1, exp(2 * (text_caption - its mean))). Where that is 1, the gates of both
    pairs are; elsewhere `text_gate` is exp(2 * (image_text - its mean)), and `caption_gate` alike.
    A pair's loss weighs its sample's gate times its own. The cosine of two texts is
    score.clip_score's, with `read` to name the two columns.

    Source: ALIP (Yang et al. 2023), and its released code. Departs: the means are the pool's, not
    moving ones over batches.
    Error: 1e-7 of a gate, against float64.
    Example: {after: [ingest.image_folder, embed.clip, score.clip_score], text_caption: clip_score,
      image_text: clip_score, image_caption: clip_score}
    """

    text_caption: NonEmpty  # column: cosine of the text and a generated caption
    image_text: NonEmpty  # column: cosine of image and text
    image_caption: NonEmpty  # column: cosine of image and generated caption

    version = 1
    determinism = "exact"
    writes = (
        Column("sample_gate", pa.float32(), "0 to 1", "Weight of both its pairs.", better="high"),
        Column("text_gate", pa.float32(), UNIT, "Weight of image and text beside it."),
        Column("caption_gate", pa.float32(), UNIT, "Weight of image and caption beside it."),
    )
    reasons = ("undefined",)

    @property
    def cosines(self) -> tuple[str, str, str]:
        return self.text_caption, self.image_text, self.image_caption

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.cosines))

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Raises StageError for a column that holds no cosines."""
        do = "name columns of cosines"
        need_types(types, self.cosines, "score.alip", do, kinds=(pa.types.is_floating,))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        mean_3: Any = np.zeros(3)
        if len(inputs.rows):
            sums: Any = ctx.reduce(self.sums, inputs.rows, added)
            count = max(1, int(sums["rows"]))
            mean_3 = np.array([2 * mean_of(sum_2, count) - 1 for sum_2 in sums["halves"].T])
        ctx.restore(ctx.map_shards(partial(self.gates, mean_3), inputs.rows))

    def values(self, rows: pa.Table) -> Any:
        """Returns (3, N) the cosines, NaN for null."""
        return np.stack([rows[name].cast(pa.float64()).to_numpy() for name in self.cosines])

    def sums(self, rows: pa.Table) -> State:
        """Returns sums of the cosines from 0 to 1, of rows with all three."""
        cosine_3N = self.values(rows)
        cosine_3N = np.clip(cosine_3N[:, np.isfinite(cosine_3N).all(axis=0)], -1, 1)
        return {"halves": whole((cosine_3N + 1) / 2), "rows": np.array(cosine_3N.shape[1])}

    def gates(self, mean_3: Any, rows: pa.Table) -> pa.Table:
        """Returns the three gates of every row, or a reason."""
        gate_3N = np.exp(2 * (self.values(rows) - mean_3[:, None]))
        undefined_N = ~np.isfinite(gate_3N).all(axis=0)
        gate_3N[1:, ~(gate_3N[0] < 1)] = 1
        gate_3N[0] = np.minimum(gate_3N[0], 1)
        made = {
            column.name: pa.array(gate_N.astype(np.float32), mask=undefined_N)
            for column, gate_N in zip(self.writes, gate_3N, strict=True)
        }
        return with_reason(rows, made, pc.if_else(pa.array(undefined_N), self.reasons[0], None))
