"""What pairs that are learnt from will not teach: a sentence each, with what to expect of scores.

The figures are AUCs of `python -m tests.benchmarks.bad_trusted`; all of them stand in
docs/measured/filter-network.md.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import TEXT, TEXT_FEATURES
from clipmill.stages.ops.languages import best_languages, predictor
from clipmill.stages.ops.vectors import as_matrix

FEW = 200  # pairs
ASKED = 2_000  # captions, evenly spread, whose language and likeness are looked at
CERTAIN = 0.5  # probability of a language that counts: shorter captions are guesses
FEW_CERTAIN = 20  # captions, of which nothing is said
OTHERS = 0.2  # share: of English captions .01 to .10 are told as others, of a fifth others .32
ALIKE = 0.28  # mean cosine of two captions: of mixed pairs .15 to .24, of one group .30 to .58
DISTINCT = 0.2  # share
NARROW = (
    "expect scores about as good as a coin toss on what else there is"
    " (AUC .52 to .56, on such pairs .66 to .80)"
)


def notes(pairs: pa.Table) -> list[str]:
    """What a user should know of the pairs, if anything."""
    if not len(pairs):
        return []
    every = -(-len(pairs) // ASKED)
    some = pairs.take(pa.array(np.arange(0, len(pairs), every)))
    return [*_few(pairs), *_other_languages(some), *_alike(pairs, some)]


def _few(pairs: pa.Table) -> Iterator[str]:
    if len(pairs) < FEW:
        yield (
            f"{len(pairs)} pairs to learn from are few: expect scores not far from a coin toss"
            " (AUC .62 after 100 pairs, .65 after 200, .73 after 1,200)"
        )


def _other_languages(some: pa.Table) -> Iterator[str]:
    lines = pc.replace_substring(some[TEXT.name], "\n", " ").to_pylist()
    names, certain = best_languages(lines, predictor("lid.176.ftz", None, "captions learnt from"))
    told = Counter(n for n, p in zip(names, certain, strict=True) if p and p >= CERTAIN)
    if told.total() >= FEW_CERTAIN:
        share = 1 - told["en"] / told.total()
        if share >= OTHERS:
            yield (
                f"{share:.0%} of captions learnt from are in other languages than English, which"
                " the text features read: expect scores of these to be little better than a coin"
                " toss (AUC .56 to .62, of English ones .78 to .89)"
            )


def _alike(pairs: pa.Table, some: pa.Table) -> Iterator[str]:
    distinct = pc.count_distinct(pairs[TEXT.name]).as_py()
    text_NT = as_matrix(some[TEXT_FEATURES.name]).astype(np.float64)
    text_NT /= np.maximum(np.linalg.norm(text_NT, axis=1, keepdims=True), 1e-12)
    rows, sum_T = len(text_NT), text_NT.sum(0)
    cosine = (sum_T @ sum_T - rows) / max(1, rows * (rows - 1))  # mean over pairs of rows
    if distinct < DISTINCT * len(pairs):
        yield f"{len(pairs):,} pairs learnt from have {distinct:,} captions in all: {NARROW}"
    elif cosine >= ALIKE:
        yield f"captions learnt from are alike, as of one group (cosine {cosine:.2f}): {NARROW}"
