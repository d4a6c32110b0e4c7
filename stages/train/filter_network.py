"""Trains a filter network, on trusted pairs and a pool's own, to judge if captions fit images."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    DUPLICATE_OF,
    IMAGE_FEATURES,
    KEEP,
    TEXT,
    TEXT_FEATURES,
    UID,
    Column,
)
from clipmill.metadata.uid import coin_hash, halves
from clipmill.pipeline.dataset import Context, Inputs, Rank, Shards, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, OneUp, Resources, later
from clipmill.stages.ops.texts.languages import best_languages, predictor
from clipmill.stages.ops.vectors.matrices import as_matrix, refuse_column, unusable

# Shapes: N usable rows, I and T widths of image and text features, G drawings, K folds.

READ = (IMAGE_FEATURES.name, TEXT_FEATURES.name, TEXT.name)
CARD = "model.json"


@dataclass(frozen=True, kw_only=True)
class TrainedFilterNetwork(DatasetStage):
    """Linear heads that map image features and captions into one space, trained on the kept rows.

    `from` may name stages of several pools, whose rows are weighted equally: trusted pairs, and the
    pool to be scored. That pool's styles help more than its wrong pairs harm; figures are in
    docs/measured/filter-network.md. Rows without caption or features, or whose features are zero or
    not finite, are left out; `notes` of `out/model.json` warns of unsuitable training pairs.

    With `folds` above 1 there are as many heads, each learnt without one fold of the drawings;
    embed.filter_network takes for a row those that met neither it nor a copy. A drawing is a row
    with its copies by `duplicate_of`: they count once, and a hash of the row that stays is their
    fold. Copies in two pools are found if ingest.union joins these.
    Source: Data Filtering Networks (Fang et al. 2023), with heads on frozen features and hashed
    words instead of CLIP, by canonical correlation, and trained on the noisy pool too.
    Error: rounding differs between processors.
    Example: {after: [ingest.image_folder, embed.features]}
    """

    width: OneUp = 256  # width of an embedding
    most_rows: OneUp = 100_000  # cap on training rows, chosen by hash
    folds: OneUp = later(1)  # parts of the drawings; each is scored by what the others teach

    version = 5
    determinism = "exact"
    learns = "keep"
    gives = ("model",)
    artifacts = (("notes", CARD),)
    reads_roots = True
    optional_reads = (KEEP,)
    resources = Resources(cpus=1, memory_gb=4)  # 7 KB a row, 20 KB at the peak

    @property
    def reads(self) -> tuple[Column, ...]:
        copies = (DUPLICATE_OF,) if self.folds > 1 else ()
        return (IMAGE_FEATURES, TEXT_FEATURES, TEXT, *copies)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        ctx.say("training")
        ctx.launch(partial(train, inputs.rows, self), workers=1)


def train(rows: Shards, settings: TrainedFilterNetwork, rank: Rank, task: Task) -> dict[str, Any]:
    """Trains and stores the model; returns the number of rows."""
    import torch

    from clipmill.stages.models import filter_network as fn
    from clipmill.stages.models.saved import put_model

    seed, stage = task.worker.seed, task.worker.stage
    place = f"stage '{stage}' (train.filter_network)"
    table, there = usable(rows, settings.most_rows, seed=seed, stage=stage)
    if len(table) < 2:
        raise StageError(
            found=f"{len(table):,} rows with an image, a caption and their features",
            where=place,
            do=f"give {FEW} trusted rows or more: fewer teach little better than a coin"
            " toss; see why those there are have no features",
        )
    torch.set_num_threads(1)  # one order of every sum
    torch.use_deterministic_algorithms(True)
    image_NI, text_NT = (as_matrix(table[c.name]) for c in (IMAGE_FEATURES, TEXT_FEATURES))
    try:
        features = image_NI, text_NT, table[TEXT.name], settings.width
        if settings.folds == 1:
            network: torch.nn.Module = fn.fitted(*features)
        else:
            network = fn.cross_fitted(*features, *_folds(table, settings.folds, seed, place))
    except ValueError as error:
        raise StageError(
            found=f"{error}, {len(table):,} of them",
            where=place,
            do="give rows with different images and captions",
        ) from None
    card = {
        "image_width": image_NI.shape[1],
        "text_width": text_NT.shape[1],
        "words": fn.WORDS,
        "trained_rows": len(table),
        "notes": [*notes(table), *_mixed(len(table), there, settings.folds)],
        **asdict(settings),
        "seed": seed,  # of the folds
    }
    if settings.folds == 1:  # as before there were any
        del card["folds"], card["seed"]
    put_model(task.put_file, task.worker.scratch, fn.KIND, card, network.state_dict())
    return {"rows": len(table)}


def _folds(
    table: pa.Table, folds: int, seed: int, place: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns (N,) the rows' folds, and weights that add up to 1 over a drawing's copies."""
    from clipmill.stages.models.filter_network import drawing_of, fold_of

    drawing = drawing_of(table)
    _, first_G, drawing_N, copies_G = np.unique(
        halves(drawing), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    fold_N = fold_of(drawing, folds, seed)
    size_K = np.bincount(fold_N[first_G], minlength=folds)
    if size_K.min() < FOLD:
        raise StageError(
            found=f"{len(copies_G):,} drawings, {size_K.min()} in the least of {folds} folds",
            where=place,
            do=f"lower `folds`, or give more drawings: a fold takes {FOLD} or more; see if"
            " `duplicate_of` takes different pictures for copies",
        )
    return fold_N, 1 / copies_G[drawing_N]


def usable(rows: Shards, most: int, *, seed: int, stage: str) -> tuple[pa.Table, int]:
    """Returns training rows, sorted by uid, independent of their shards; and how many could be."""
    table, there = None, 0
    for part in _usable_parts(rows):
        there += len(part)
        table = part if table is None else pa.concat_tables([table, part])
        if len(table) > 2 * most:
            table = _drawn(table, most, seed, stage)
    if table is None:
        return pa.table({name: pa.nulls(0) for name in (UID.name, *READ)}), 0
    table = _drawn(table, most, seed, stage)
    high_N, low_N = halves(table[UID.name]).T
    return table.take(pa.array(np.lexsort((low_N, high_N)))), there


def _usable_parts(rows: Shards) -> Iterator[pa.Table]:
    for shard in range(len(rows)):
        table = rows.table(shard)
        good = table[TEXT.name].is_valid().to_numpy()
        if KEEP.name in table.column_names:
            good &= table[KEEP.name].fill_null(False).to_numpy()
        for column in (IMAGE_FEATURES, TEXT_FEATURES):
            bad_N = unusable(as_matrix(table[column.name]))
            refuse_column(np.asarray(table[column.name].is_null()), bad_N, column.name, None)
            good &= ~bad_N
        copies = [name for name in table.column_names if name == DUPLICATE_OF.name]
        yield table.filter(pa.array(good)).select([UID.name, *READ, *copies])


def _drawn(table: pa.Table, most: int, seed: int, stage: str) -> pa.Table:
    """Returns the `most` rows with the least hashes, or all if there are no more."""
    if len(table) <= most:
        return table
    hash_N = coin_hash(table[UID.name], seed=seed, stage=stage, purpose="rows")
    return table.take(pa.array(np.argsort(hash_N, kind="stable")[:most]))


FOLD = 10  # least drawings of a fold: the mean and deviation of fewer are a guess
FEW = 200  # pairs; fewer give a note
ASKED = 2_000  # captions, evenly spaced, whose language and similarity are checked
CERTAIN = 0.5  # least probability of a language; short captions are guesses
FEW_CERTAIN = 20  # least captions of certain language for a note
OTHERS = 0.2  # share not English: .01 to .10 is detected in English captions, .32 with a fifth
ALIKE = 0.28  # mean cosine of two captions: in mixed pairs .15 to .24, in one group .30 to .58
DISTINCT = 0.2  # share of distinct captions; less gives a note
NARROW = (
    "expect scores about as good as a coin toss on what else there is"
    " (AUC .52 to .56, on such pairs .66 to .80)"
)


def notes(pairs: pa.Table) -> list[str]:
    """Returns warnings about the training pairs, if any."""
    if not len(pairs):
        return []
    every = -(-len(pairs) // ASKED)
    some = pairs.take(pa.array(np.arange(0, len(pairs), every)))
    return [*_few(pairs), *_other_languages(some), *_alike(pairs, some)]


def _mixed(learnt: int, there: int, folds: int) -> Iterator[str]:
    if learnt < there and folds == 1:
        yield (
            f"it learnt from {learnt:,} of {there:,} rows: expect a cut by share to keep more of"
            " these than of others as good; raise `most_rows`, or give `folds`"
        )


def _few(pairs: pa.Table) -> Iterator[str]:
    if len(pairs) < FEW:
        yield (
            f"{len(pairs)} pairs to learn from are few: expect scores not far from a coin toss"
            " (AUC .62 after 100 pairs, .65 after 200, .73 after 1,200)"
        )


def _other_languages(some: pa.Table) -> Iterator[str]:
    lines = pc.replace_substring(some[TEXT.name], "\n", " ").to_pylist()
    names, certain = best_languages(lines, predictor("lid.176.ftz", None, "captions learnt from"))
    counts = Counter(n for n, p in zip(names, certain, strict=True) if p and p >= CERTAIN)
    if counts.total() >= FEW_CERTAIN:
        share = 1 - counts["en"] / counts.total()
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
