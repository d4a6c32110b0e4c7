"""The interface between the trainer and a reader of exports: what is asked for, and a batch.

A reader is a file stages/readers/NAME.py with two functions:

    prepare(reading, file, task)   reads an exported file before the first step; returns JSON with
                                   its `rows`, and those `left_out` by reason
    batches(reading, prepared, *, size, seed, threads, trainer)   returns a Source of batches
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clipmill.metadata.uid import mixed
from clipmill.stages.clip.scales import Augment, Sampling

# Shapes: B rows of the batch, M texts of these, S pixels a side, T tokens, N texts, D width of a
# stored vector.

Texts = Literal["uniform", "first", "all"]  # which texts of a row a step takes
Gain = Literal["diversity", "frequency"]  # of a row's concepts to a batch
SHIFT = 4  # pixels in each direction
STAGE = "train.clip"  # in hashes


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Says what a training reads of an export; pickles, for workers."""

    data: str  # URI of the export's folder
    folder: str  # URI of the stage's folder
    size: int  # pixels a side
    tokenize: Callable[
        [Sequence[str]], tuple[NDArray[np.int32], NDArray[np.int64]]
    ]  # of its towers
    augment: Augment = "shift"
    sampling: Sampling = "epochs"
    texts: Texts = "uniform"
    teacher: Sequence[str] = ()  # columns of stored vectors; a row without one is left out
    negatives: str | None = None  # column of texts that are false of the image
    choose: Any = None  # a Chooser of rows, which may replace repeats, weights and texts; null: all
    gain: Gain | None = None  # by which rows are chosen from several batches; None: all are
    super_batch: int = 1  # of a gain: batches from whose rows one is chosen
    reference: str | None = None  # column of a reference model's loss; a row without is left out
    image_views: int = 1  # of a row in a batch
    text_views: int = 1
    # Edits a text by a hash: each, or of two views the second; null: none
    edits: Callable[[str, int], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images and captions of one step, or one rank's part of them."""

    pixels: NDArray[np.uint8]  # (B, 3, S, S); of two views (2 B, 3, S, S), one after the other
    tokens: NDArray[np.int32]  # (T,)
    # (M + K,) first token of each caption, then of each negative; (2 M + K,) of two views
    starts: NDArray[np.int64]
    image_of: NDArray[np.int64]  # (M,) each caption's row in this part, ascending
    weights: NDArray[np.float32]  # (B,)
    rows: NDArray[np.int64]  # (B,) index among all rows
    index: NDArray[np.int64]  # (B,) sample_index
    teacher: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # (B, D) by column
    # (K,) each negative's row, ascending; None if the loss reads none
    negative_of: NDArray[np.int64] | None = None
    # Rows that replace one whose picture does not decode, counted by reason; None if those rows
    # were left out beforehand.
    replaced: Mapping[str, int] | None = None


class Source(Protocol):
    """Batch n, of the seed, n and the export; jest.py's of the weights and number of ranks, too."""

    size: int

    def of_rank(self, n: int, rank: int, ranks: int) -> Batch:
        """Returns a rank's rows of batch n; reads no other row."""
        ...

    def files(self, row_B: NDArray[np.int64]) -> list[str]:
        """Returns the exported files that hold the rows, the slowest to read first if known."""
        ...

    def close(self) -> None:
        """Ends threads, if any."""
        ...


def part_of(rows: int, rank: int, ranks: int) -> slice:
    """Returns a rank's rows of a batch: contiguous, in the order of the ranks."""
    return slice(rows * rank // ranks, rows * (rank + 1) // ranks)


def of_view(coin: Any, view: int) -> Any:
    """Returns the hash of a row's view, from that of its first; takes an array, or a number."""
    return mixed(np.asarray(coin, np.uint64) ^ np.uint64(view)) if view else coin


def shift_by(coin: Any) -> tuple[Any, Any]:
    """Returns a picture's shift down and right within its margin; takes a hash or an array."""
    places = 2 * SHIFT + 1
    return coin % places, coin // places % places


def text_by(coin: Any, texts: Any, view: int = 0) -> Any:
    """Returns the index of the text to take, of a second view of another one; uses other bits of
    the hash than the shift."""
    others = np.maximum(np.asarray(texts, np.uint64), 2) - 1
    more = 1 + (of_view(coin, view) >> 32) % others if view else 0
    return ((coin >> 32) % texts + more) % texts
