"""Captions as a recipe says them: a caption stage that asks no model."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import CAPTIONS, REASON, TEXT
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Says(RowStage):
    """Each text of `said` with the pool's caption in the place of its star."""

    said: tuple[str, ...] = ("a drawing of *",)
    label: str = "rewrite"

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (CAPTIONS,)
    reasons = ("no_text",)

    def open(self, worker: Worker) -> RowFunction:
        def made(batch: pa.Table) -> pa.Table:
            texts = batch[TEXT.name].to_pylist()
            rows = [
                None
                if text is None
                else [
                    {
                        "text": one.replace("*", text),
                        "source": worker.stage,
                        "model": "none",
                        "prompt_id": f"said@{number:08x}",
                        "label": self.label,
                    }
                    for number, one in enumerate(self.said)
                ]
                for text in texts
            ]
            reasons = pa.array([None if text is not None else "no_text" for text in texts])
            reason = reasons.cast(pa.string()).dictionary_encode()
            return pa.table({CAPTIONS.name: pa.array(rows, CAPTIONS.dtype), REASON.name: reason})

        return made
