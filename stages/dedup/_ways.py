"""The ways to compare rows with evaluation samples: what is read and written, and what counts."""

from dataclasses import dataclass

import pyarrow as pa

from clipmill.metadata.schema import IMAGE_EMBEDDING, PHASH, TEXT, Column

NEAREST = "To the nearest evaluation image."
EVAL_DISTANCE = Column("eval_distance", pa.int32(), "bits", NEAREST, better="high", alike=2)
EVAL_COSINE = Column("eval_cosine", pa.float32(), "cosine", NEAREST, better="low", alike=0.9)
EVAL_OVERLAP = Column(
    "eval_overlap",
    pa.float32(),
    "0 to 1",
    "Share of an evaluation caption that the row has.",
    better="low",
    alike=1,
)
EVAL_TASK = Column(
    "eval_task", pa.string(), "name", "The task of that sample; of several, one.", names="task"
)
EVAL_KEY = Column(
    "eval_key", pa.string(), "key", "That sample, as its task names it.", names="sample"
)
ISC_COSINE = 0.604169  # where DataComp cuts, with descriptors of ISC21's winner


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to compare: column read, column written, reasons, thresholds at which leaks count."""

    reads: Column
    writes: Column
    reasons: tuple[str, ...]
    limits: tuple[float, ...]
    is_distance: bool = False


WAYS = {
    "phash": Way(
        reads=PHASH,
        writes=EVAL_DISTANCE,
        reasons=("no_hash",),
        limits=tuple(range(17)),
        is_distance=True,
    ),
    "embedding": Way(
        reads=IMAGE_EMBEDDING,
        writes=EVAL_COSINE,
        reasons=("no_embedding", "zero_or_nan_embedding"),
        limits=(0.5, ISC_COSINE, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0),
    ),
    "caption": Way(
        reads=TEXT,
        writes=EVAL_OVERLAP,
        reasons=("no_text", "empty_text"),
        limits=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
}
