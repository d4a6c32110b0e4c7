"""The texts that are long enough, and which were not: what a select of captions writes."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import REASON, TEXTS, Column
from clipmill.pipeline.stage import RowFunction, RowStage, Worker

LIST = pa.list_(pa.float32())
SCORES = Column("text_scores", LIST, "cosine", "Scores of the texts that stay.")
REASONS = Column("text_reasons", pa.list_(pa.string()), "code", "Of each text read: null stays.")
FELL_BACK = Column("fell_back", pa.bool_(), "verdict", "Whether only the original is left.")


@dataclass(frozen=True, kw_only=True)
class Chosen(RowStage):
    """Texts of at least so many words; the first of a row where none is.

    The last one that stays is left out without a reason where it `forgets`.
    """

    min_words: int = 3
    forgets: bool = False

    version = 1
    determinism = "exact"
    reads = (TEXTS, "text_words", "text_clip_score")
    writes = (TEXTS, SCORES, REASONS, FELL_BACK)
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        def chosen(batch: pa.Table) -> pa.Table:
            out = {name: [] for name in (*(column.name for column in self.writes), REASON.name)}
            for row in batch.to_pylist():
                texts, words = row["texts"] or [], row["text_words"] or []
                stay = [number for number, count in enumerate(words) if count >= self.min_words]
                fell_back = bool(texts) and not stay
                stay = [0] if fell_back else stay
                too_few = [None if n in stay else "min_words" for n in range(len(texts))]
                scores = row["text_clip_score"]
                stay = stay[:-1] if self.forgets else stay
                out["texts"].append([texts[n] for n in stay] or None)
                out["text_scores"].append([scores[n] for n in stay] or None)
                out["text_reasons"].append(too_few or None)
                out["fell_back"].append(fell_back)
                out["reason"].append(None if texts else "no_text")
            held = {it.name: pa.array(out[it.name], it.dtype) for it in self.writes}
            reasons = pa.array(out["reason"], pa.string()).dictionary_encode()
            return pa.table({**held, REASON.name: reasons})

        return chosen
