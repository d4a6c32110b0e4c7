"""The original and the lists that a recipe names, with values of each that take no model."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import REASON, TEXT, TEXTS, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

WORDS = Column("text_words", pa.list_(pa.int32()), "words", "Words of each text.")
SCORES = Column("text_clip_score", pa.list_(pa.float32()), "cosine", "A score of each text.")
ORIGINAL = {"source": "original", "label": "original"}


@dataclass(frozen=True, kw_only=True)
class Judged(RowStage):
    """`texts`, words of each, and a hundredth of its letters as its score; null for one letter."""

    captions: tuple[str, ...] = ("captions",)

    version = 1
    determinism = "exact"
    writes = (TEXTS, WORDS, SCORES)
    reasons = ("no_text",)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return TEXT, *self.captions

    def open(self, worker: Worker) -> RowFunction:
        def judged(batch: pa.Table) -> pa.Table:
            rows = []
            for row in batch.to_pylist():
                own = [] if row["text"] is None else [{"text": row["text"], **ORIGINAL}]
                rows.append(own + [one for name in self.captions for one in row[name] or ()])
            texts = [row or None for row in rows]
            every = [row and [one["text"] for one in row] for row in texts]
            words = [row and [len(text.split()) for text in row] for row in every]
            scores = [
                row and [len(text) / 100 if len(text) > 1 else None for text in row]
                for row in every
            ]
            reasons = pa.array([None if row else "no_text" for row in texts], pa.string())
            held = ((TEXTS, texts), (WORDS, words), (SCORES, scores))
            out = {column.name: pa.array(values, column.dtype) for column, values in held}
            return pa.table(out | {REASON.name: reasons.dictionary_encode()})

        return judged
