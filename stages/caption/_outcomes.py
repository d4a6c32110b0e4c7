"""The columns of stages that store captions, from what a model answered."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import CAPTIONS, CAPTIONS_MISSING, REASON, REASON_TYPE
from clipmill.pipeline.stage import Worker

WRITES = (CAPTIONS, CAPTIONS_MISSING)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a question: a text, or the reason that there is none."""

    text: str = ""
    reason: str | None = None
    prompt_id: str | None
    label: str


def columns_of(rows: Iterable[Sequence[Outcome] | str], worker: Worker, model: str) -> pa.Table:
    """Returns texts, number of missing ones and reason of each row.

    A row is its outcomes, or a reason if it was not asked. A row without any text is null, with the
    reason of its first outcome.
    """
    captions: list[list[dict[str, Any]] | None] = []
    missing: list[int | None] = []
    reasons: list[str | None] = []
    for row in rows:
        outcomes = [] if isinstance(row, str) else row
        texts = [
            {
                "text": outcome.text,
                "source": worker.stage,
                "model": model,
                "prompt_id": outcome.prompt_id,
                "label": outcome.label,
            }
            for outcome in outcomes
            if outcome.reason is None
        ]
        captions.append(texts or None)
        missing.append(None if isinstance(row, str) else len(outcomes) - len(texts))
        reasons.append(None if texts else row if isinstance(row, str) else outcomes[0].reason)
    return pa.table(
        {
            CAPTIONS.name: pa.array(captions, CAPTIONS.dtype),
            CAPTIONS_MISSING.name: pa.array(missing, CAPTIONS_MISSING.dtype),
            REASON.name: pa.array(reasons, pa.string()).cast(REASON_TYPE),
        }
    )
