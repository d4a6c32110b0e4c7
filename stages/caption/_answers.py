"""What models answered, as the columns of a caption stage."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTIONS, CAPTIONS_MISSING, REASON, REASON_TYPE, UID
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.stage import StreamFunction, Worker
from clipmill.stages.models.endpoint import Limits

# Shapes: N rows of the batch.

WRITES = (CAPTIONS, CAPTIONS_MISSING)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Said:
    """A text, or the reason that there is none."""

    text: str = ""
    reason: str | None = None
    prompt_id: str | None
    label: str


def streamed(
    start: Callable[[pa.Table], Coroutine[Any, Any, pa.Table]],
    batch_rows: int,
    limits: Limits,
    asks: int = 1,
    a_slot: int = 16,
) -> StreamFunction:
    """The function of a stage whose batches wait side by side; it asks so often for a row at least.

    Rows are read ahead of one that waits, until so many questions a slot are begun: one answer may
    take that many times as long as others before a slot is empty.
    """
    from clipmill.stages.ops.ahead import ahead

    rows_ahead = max(4 * batch_rows, a_slot * limits.concurrency // asks)
    return lambda batches: ahead(batches, start, rows_ahead)


def columns_of(rows: Iterable[Sequence[Said] | str], worker: Worker, model: str) -> pa.Table:
    """Texts, texts missing and reason of each row: of what was said, or why nothing was asked.

    A row where nothing was said at all is null, with the reason of its first text.
    """
    captions: list[list[dict[str, Any]] | None] = []
    missing: list[int | None] = []
    reasons: list[str | None] = []
    for row in rows:
        said = [] if isinstance(row, str) else row
        texts = [
            {
                "text": one.text,
                "source": worker.stage,
                "model": model,
                "prompt_id": one.prompt_id,
                "label": one.label,
            }
            for one in said
            if one.reason is None
        ]
        captions.append(texts or None)
        missing.append(None if isinstance(row, str) else len(said) - len(texts))
        reasons.append(None if texts else row if isinstance(row, str) else said[0].reason)
    return pa.table(
        {
            CAPTIONS.name: pa.array(captions, CAPTIONS.dtype),
            CAPTIONS_MISSING.name: pa.array(missing, CAPTIONS_MISSING.dtype),
            REASON.name: pa.array(reasons, pa.string()).cast(REASON_TYPE),
        }
    )


def bits_of(batch: pa.Table, worker: Worker, purpose: str) -> NDArray[np.uint64]:
    """(N,) 64 bits of each row for one purpose of the stage."""
    return coin_hash(batch[UID.name], seed=worker.seed, stage=worker.stage, purpose=purpose)


def seeds_of(batch: pa.Table, worker: Worker, prompt: str) -> list[int]:
    """(N,) what a server draws each row's answer to a prompt by: 31 bits, as all servers take."""
    return (bits_of(batch, worker, f"answer {prompt}") >> np.uint64(33)).tolist()


async def all_of(waiting: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each comes to; where one fails, the others are cancelled."""
    import asyncio

    tasks = [asyncio.ensure_future(one) for one in waiting]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
