"""Captions as a recipe says them: a caption stage that asks no model."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import CAPTIONS, CAPTIONS_MISSING, REASON, TEXT
from clipmill.pipeline.stage import RowFunction, RowStage, Worker


@dataclass(frozen=True, kw_only=True)
class Says(RowStage):
    """Each text of `said` with the pool's caption in the place of its star.

    Of a caption with `mute` in it no text is got, and the last is not of one with `hoarse` in it.
    """

    said: tuple[str, ...] = ("a drawing of *",)
    label: str = "rewrite"
    mute: str = "\n"
    hoarse: str = "\n"

    version = 1
    determinism = "exact"
    reads = (TEXT,)
    writes = (CAPTIONS, CAPTIONS_MISSING)
    reasons = ("no_text", "timeout")

    def open(self, worker: Worker) -> RowFunction:
        def made(batch: pa.Table) -> pa.Table:
            texts = batch[TEXT.name].to_pylist()
            got = [
                0 if text is None or self.mute in text else len(self.said) - (self.hoarse in text)
                for text in texts
            ]
            rows = [
                None
                if not most
                else [
                    {
                        "text": one.replace("*", text),
                        "source": worker.stage,
                        "model": "none",
                        "prompt_id": f"said@{number:08x}",
                        "label": self.label,
                    }
                    for number, one in enumerate(self.said[:most])
                ]
                for text, most in zip(texts, got, strict=True)
            ]
            missing = [
                None if text is None else len(self.said) - most
                for text, most in zip(texts, got, strict=True)
            ]
            reasons = [
                "no_text" if text is None else None if most else "timeout"
                for text, most in zip(texts, got, strict=True)
            ]
            return pa.table(
                {
                    CAPTIONS.name: pa.array(rows, CAPTIONS.dtype),
                    CAPTIONS_MISSING.name: pa.array(missing, pa.int32()),
                    REASON.name: pa.array(reasons, pa.string()).dictionary_encode(),
                }
            )

        return made
