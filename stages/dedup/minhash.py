"""Finds near copies of captions, or of any text, by the pieces that they share."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import DUPLICATE_OF, IDENTITY, TEXT, Column
from clipmill.pipeline.dataset import Context, Inputs, Shards, State, Task
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import Between0And1, NonEmpty, OneUp, Share, later
from clipmill.stages.ops.tables.keeper import PREFERENCE, KeepsBest, Order, preference
from clipmill.stages.ops.tables.rows import DROPPED, added, dropped_before, put_json

# Shapes: N texts, V distinct ones, B bands of a signature, R runs of texts of one band, E pairs of
# texts, S texts of a block, or drawn ones.

JOINED_AT = Column(
    "joined_at",
    pa.float32(),
    "Jaccard, `min_jaccard` to 1",
    "Similarity at which the row's group falls to a better row; null where it never does.",
    better="low",
)
JACCARD = Column("jaccard", pa.float32(), "0 to 1", "Of the pieces of the two texts.")
REACH = 8  # places apart, in a band's order, up to which its texts are compared
PARTITION_BYTES = 128 << 20  # of pairs with their texts
BLOCK_BYTES = 1 << 20  # of text that is cut in pieces at a time
RECALL = "recall.json"
DRAWN = 200  # texts whose near ones are counted, on average; each is compared with all others
BEYOND = (0, 0.05, 0.1, 0.2)  # above min_jaccard: where recall is reported
TEMPLATE, NEXT = 1024, 1  # texts above which a band is a template's, and the reach there


@dataclass(frozen=True, kw_only=True)
class MinHashDuplicate(KeepsBest):
    """Jaccard at which a text's group falls to a better row, up to 1; null if it never does.

    A row is a duplicate at Jaccard s exactly when joined_at >= s, for every s from `min_jaccard`
    up: `joined_at IS NULL OR joined_at < 0.8` keeps one row of each group at 0.8. Groups are those
    of single linkage: a chain of similar pairs is one. duplicate_of is the best row at
    `min_jaccard`.

    `pairs: true` stores out/pairs.parquet too (uid, other_uid, jaccard; sorted): all pairs of
    distinct texts that were compared and reach `min_jaccard`, each by the best rows of the two; and
    each row with the best row of its equal texts, at 1.

    Source: MinHash (Broder 1997) with datasketch 2.0's signatures, cut in bands (Mining of Massive
    Datasets, Leskovec et al., 3.4). Pieces are runs of characters or words of the text in lower
    case, with single spaces; a shorter text is one piece.
    Error: similarities are exact, so no pair is wrong; a pair at `min_jaccard` is missed with a
    chance of at most 1 - `min_recall`, a closer one far more rarely; out/recall.json tells how many
    were found. If more than 9 texts share a band, each is compared only with its neighbours in a
    fixed order: heights in a template's group may come out lower, and it may split into a few.
    Example: {after: [ingest.datacomp]}
    """

    # least similarity at which rows are joined, 0 to 1; a cut may be higher, not lower
    min_jaccard: Share = 0.7
    column: NonEmpty = TEXT.name  # column of the texts to compare
    unit: Literal["character", "word"] = "character"  # unit of the pieces of a text
    size: OneUp = 5  # characters or words of a piece
    permutations: OneUp = 128  # hashes of a signature: more find more, and take longer
    # seed of the hashes; 1 is datasketch's default
    permutation_seed: Annotated[int, Meta(ge=0, lt=2**32)] = 1
    min_recall: Between0And1 = 0.95  # share of the pairs at `min_jaccard` that must be found
    pairs: bool = later(False)  # store all near pairs too, in out/pairs.parquet

    version = 1
    writes = (JOINED_AT, DUPLICATE_OF)
    reasons = (DROPPED, "no_text", "empty_text")
    artifacts = (("recall", RECALL),)

    def __post_init__(self) -> None:
        try:
            bands_for(self.min_jaccard, self.permutations, self.min_recall)
        except ValueError as error:
            do = "write more of them, or a lower min_recall"
            raise RecipeError(str(error), "key `permutations`", do) from None

    @property
    def bands(self) -> tuple[int, int]:
        return bands_for(self.min_jaccard, self.permutations, self.min_recall)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        return {JOINED_AT.name: (self.min_jaccard, 1)}

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return (replace(TEXT, name=self.column), *self.deciding)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.dedup._linkage import link
        from clipmill.stages.dedup._pairs import put_pairs
        from clipmill.stages.ops.tables.combined import (
            Combined,
            Concatenated,
            Zipped,
            ZippedWithFiner,
        )

        ctx.say("comparing captions")
        partitions = ctx.partitions(inputs.rows)
        with_text = ctx.map_shards(partial(texts, self.column, self.keep), inputs.rows)
        rows = ctx.shuffle(with_text, "node", partitions)  # equal texts meet
        chance = DRAWN / max(1, sum(map(inputs.rows.rows, range(len(inputs.rows)))))
        surveys = ctx.map(partial(surveyed, rows, chance), list(range(partitions)))
        # A text is filed under every band, in rows that are a quarter as wide.
        wide = max(1, partitions * self.bands[0] // 4)
        met = ctx.shuffle(ctx.map_shards(partial(filed_under_bands, self), rows), "band", wide)
        # Most texts have few pairs, a template's have many: pairs set how finely they are parted.
        every, text_bytes = (sum(survey[n] for survey in surveys) for n in ("texts", "bytes"))
        pair_bytes = 24 + text_bytes / max(1, every)  # two nodes and a height, with one text
        size_bytes = int(ctx.reduce(counted, met, added)["pairs"]) * pair_bytes
        finer = partitions * (int(size_bytes / partitions / PARTITION_BYTES) + 1)
        # Pairs are joined with their first text, then sent with it to the second one's partition.
        pairs = ctx.shuffle(ctx.map_shards(candidates, met), "a", finer)
        ctx.drop(met)
        halfway = ctx.shuffle(Zipped(first_texts, (rows, pairs)), "b", finer)
        ctx.drop(pairs)
        near: Combined = ZippedWithFiner(partial(similar, self), rows, halfway)
        if self.pairs:  # all of them stay, so they are parted as finely as their source
            near = Zipped(partial(verified, self), (rows, halfway))
        edges = ctx.shuffle(near, "a", finer if self.pairs else partitions)
        ctx.drop(halfway)
        if self.pairs:
            put_pairs(ctx, rows, edges, equal=1, value=JACCARD)
        sample = [text for survey in surveys for text in survey["drawn"]]
        report(self, ctx, sample, rows, edges)
        linked = link(ctx, rows, edges, equal=-1, partitions=partitions, joined_at=JOINED_AT)
        textless = ctx.map_shards(partial(without_text, self.column), inputs.rows)
        ctx.restore(Concatenated((textless, linked)))


def texts(column: str, order: Order, shard: pa.Table) -> pa.Table:
    """Returns the rows with a text, in the columns that `link` takes, and the plain text."""
    from clipmill.stages.dedup._plain import plain
    from clipmill.stages.dedup._shingles import digests

    text = plain(shard[column])
    rows = shard.select(IDENTITY)
    rows = rows.append_column(PREFERENCE.name, preference(order, shard))
    rows = rows.append_column("plain", text)
    rows = rows.filter(pc.and_not(text.is_valid(), dropped_before(shard)))
    return rows.append_column("node", pa.array(digests(rows["plain"])))


def without_text(column: str, shard: pa.Table) -> pa.Table:
    """Returns the rows without a text, with the reason."""
    from clipmill.stages.dedup._linkage import unlinked
    from clipmill.stages.dedup._plain import plain

    no_text, is_empty = shard[column].is_null(), plain(shard[column]).is_null()
    missing = pc.make_struct(dropped_before(shard), no_text, is_empty)
    return unlinked(shard, JOINED_AT, pc.case_when(missing, *MinHashDuplicate.reasons))


def distinct_texts(rows: pa.Table) -> tuple[NDArray[np.uint64], pa.Array]:
    """Returns the nodes of a partition in ascending order, and the text of each."""
    node_V, first_V = np.unique(rows["node"].to_numpy(), return_index=True)
    return node_V, rows["plain"].combine_chunks().take(pa.array(first_V))


def surveyed(rows: Shards, chance: float, partition: int, task: Task) -> dict[str, Any]:
    """Returns number and bytes of a partition's distinct texts, and a sample of them."""
    from clipmill.stages.dedup._shingles import sizes

    node_V, text = distinct_texts(rows.table(partition))
    some = drawn(text, node_V, chance)
    return {"texts": len(text), "bytes": int(sizes(text).sum()), "drawn": some}


def filed_under_bands(stage: MinHashDuplicate, rows: pa.Table) -> pa.Table:
    """Returns each distinct text of a partition, under each band of its signature."""
    from clipmill.stages.dedup import _minhash
    from clipmill.stages.dedup import _shingles as shingles

    node_V, text = distinct_texts(rows)
    key_VB = np.empty((len(text), stage.bands[0]), np.uint64)
    for part in shingles.blocks(shingles.sizes(text), BLOCK_BYTES):
        pieces = shingles.pieces(text[part], stage.unit, stage.size)
        signature_VK = _minhash.signatures(
            shingles.hashes(pieces), pieces.end, stage.permutations, stage.permutation_seed
        )
        key_VB[part] = _minhash.band_keys(signature_VK, *stage.bands)
    next_VB = np.roll(key_VB, -1, axis=1)  # orders a template's band: similar texts lie nearer
    node = np.repeat(node_V, key_VB.shape[1])
    names = ["band", "next", "node"]
    return pa.table([pa.array(c) for c in (key_VB.ravel(), next_VB.ravel(), node)], names)


def counted(met: pa.Table) -> State:
    """Counts the pairs that `candidates` gives."""
    from clipmill.stages.dedup._runs import runs

    _, size_R = runs(np.sort(met["band"].to_numpy()))
    reach_R = np.where(size_R > TEMPLATE, NEXT, np.minimum(REACH, size_R - 1))
    pairs_R = reach_R * size_R - reach_R * (reach_R + 1) // 2
    return {"pairs": np.array(pairs_R.sum())}


def candidates(met: pa.Table) -> pa.Table:
    """Returns pairs of nodes under one band."""
    from clipmill.stages.dedup._runs import neighbours, runs

    band_M, next_M, node_M = (met[name].to_numpy() for name in ("band", "next", "node"))
    order_M = np.argsort(band_M)
    _, size_R = runs(band_M[order_M])
    order_M = order_M[np.repeat(size_R, size_R) > 1]  # most stand alone, and need no order
    order_M = order_M[np.lexsort((node_M[order_M], next_M[order_M], band_M[order_M]))]
    node_M = node_M[order_M]
    first_R, size_R = runs(band_M[order_M])
    is_template_R = size_R > TEMPLATE
    pairs = chain(
        neighbours(first_R, np.where(is_template_R, 1, size_R), REACH),
        neighbours(first_R, np.where(is_template_R, size_R, 1), NEXT),
    )
    ends = [np.sort(node_M[np.stack(places)], axis=0) for places in pairs]
    a_E, b_E = np.concatenate([np.empty((2, 0), np.uint64), *ends], axis=1)
    return pa.table({"a": pa.array(a_E), "b": pa.array(b_E)})


def first_texts(rows: pa.Table, pairs: pa.Table) -> pa.Table:
    """Returns the pairs, each once, with the text of its first node."""
    node_V, text = distinct_texts(rows)
    pairs = pairs.group_by(["a", "b"], use_threads=False).aggregate([])  # they met in several bands
    place_E = np.searchsorted(node_V, pairs["a"].to_numpy())
    return pairs.append_column("first", text.take(pa.array(place_E)))


def verified(stage: MinHashDuplicate, rows: pa.Table, halfway: pa.Table) -> pa.Table:
    """Returns the pairs whose texts reach min_jaccard, as edges, the most similar lowest."""
    return near_edges(stage, distinct_texts(rows), halfway)


def similar(stage: MinHashDuplicate, rows: pa.Table, parts: Iterator[pa.Table]) -> pa.Table:
    """Returns a minimum spanning forest of `verified`'s edges, one finer shard at a time."""
    from clipmill.stages.dedup._linkage import EDGE, forest

    texts_V = distinct_texts(rows)
    edges = EDGE.empty_table()
    for halfway in parts:
        edges = forest(pa.concat_tables([edges, near_edges(stage, texts_V, halfway)]))
    return edges


def near_edges(
    stage: MinHashDuplicate, texts_V: tuple[NDArray[np.uint64], pa.Array], halfway: pa.Table
) -> pa.Table:
    from clipmill.stages.dedup._linkage import as_edges

    node_V, text = texts_V
    a_E, b_E = halfway["a"].to_numpy(), halfway["b"].to_numpy()
    second_E = np.searchsorted(node_V, b_E)
    jaccard_E = similarity(stage, halfway["first"].combine_chunks(), text, second_E)
    near = jaccard_E >= np.float32(stage.min_jaccard)  # as `where` compares
    return as_edges(a_E[near], b_E[near], -jaccard_E[near])


def similarity(
    stage: MinHashDuplicate, first_E: pa.Array, text_V: pa.Array, second_E: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns (E,) Jaccard of each first text and the text whose number is beside it."""
    from clipmill.stages.dedup import _shingles as shingles

    jaccard_E = np.empty(len(first_E), np.float32)
    order_E = np.argsort(second_E, kind="stable")
    size_E = shingles.sizes(first_E) + shingles.sizes(text_V)[second_E]
    for part in shingles.blocks(size_E[order_E], BLOCK_BYTES):
        pairs = order_E[part]
        second_S, second = np.unique(second_E[pairs], return_inverse=True)
        both = [first_E.take(pa.array(pairs)), text_V.take(pa.array(second_S))]
        pieces = shingles.pieces(pa.concat_arrays(both), stage.unit, stage.size)
        ends = np.arange(len(pairs)), len(pairs) + second
        jaccard_E[pairs] = shingles.jaccard(shingles.numbers(pieces), pieces.end, *ends)
    return jaccard_E


def drawn(text: pa.Array, node_V: np.ndarray, chance: float) -> list[str]:
    """Returns a sample of the texts, each drawn with that chance by a hash of its node."""
    hash_V = node_V * np.uint64(0x9E3779B97F4A7C15)
    return text.filter(pa.array(hash_V < min(chance, 1) * 2.0**64)).to_pylist()


def report(
    stage: MinHashDuplicate, ctx: Context, sample: list[str], rows: Shards, edges: Shards
) -> None:
    """Stores out/recall.json: the share of near pairs found, by formula and in the sample.

    A forest of edges is enough: it has each text's nearest.
    """
    best = ctx.reduce(partial(nearest_of_all, stage, sample), rows, greatest)
    joined = ctx.reduce(partial(nearest_by_edges, sample), edges, greatest)
    best_S, joined_S = (state["jaccard"].astype(np.float32) for state in (best, joined))
    has_near_S = best_S >= np.float32(stage.min_jaccard)
    levels = [s for s in (round(stage.min_jaccard + more, 6) for more in BEYOND) if s <= 1]
    counts = {
        "bands": stage.bands[0],
        "rows": stage.bands[1],
        "pairs_compared": {str(s): round(recall(s, *stage.bands), 6) for s in levels},
        "texts_drawn": {
            "all": len(sample),
            "with_a_near_one": int(has_near_S.sum()),
            "joined": int((has_near_S & (joined_S > 0)).sum()),
            "joined_to_the_nearest": int((has_near_S & (joined_S == best_S)).sum()),
        },
    }
    ctx.map(partial(put_json, RECALL), [counts])


def nearest_of_all(stage: MinHashDuplicate, sample: list[str], rows: pa.Table) -> State:
    """Returns (S,) the greatest Jaccard to another text of the partition."""
    from clipmill.stages.dedup._minhash import TextIndex
    from clipmill.stages.dedup._shingles import digests

    text = pa.array(sample, pa.large_string())
    index = TextIndex(text, digests(text), stage.unit, stage.size)
    jaccard_S = index.nearest(rows["plain"].combine_chunks(), rows["node"].to_numpy())
    return {"jaccard": jaccard_S.astype(np.float32)}


def nearest_by_edges(sample: list[str], edges: pa.Table) -> State:
    """Returns (S,) the greatest Jaccard of the edges at each text; 0 without an edge."""
    from clipmill.stages.dedup._linkage import places_in
    from clipmill.stages.dedup._shingles import digests

    node_S = digests(pa.array(sample, pa.large_string()))
    order_S = np.argsort(node_S)
    jaccard_S = np.zeros(len(sample), np.float32)
    for end in ("a", "b"):
        place_E, is_drawn_E = places_in(node_S[order_S], edges[end].to_numpy())
        similarity = -edges["height"].to_numpy()[is_drawn_E]
        np.maximum.at(jaccard_S, order_S[place_E[is_drawn_E]], similarity)
    return {"jaccard": jaccard_S}


def greatest(a: State, b: State) -> State:
    return {name: np.maximum(a[name], b[name]) for name in a}


def bands_for(min_jaccard: float, permutations: int, min_recall: float) -> tuple[int, int]:
    """Returns the number of bands and the rows of each: the longest bands with that recall.

    These compare the fewest pairs. ValueError if bands of one row have less recall.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if recall(min_jaccard, bands, rows) >= min_recall:
            return bands, rows
    raise ValueError(
        f"{permutations} permutations find {recall(min_jaccard, permutations, 1):.3f} of the pairs "
        f"at min_jaccard {min_jaccard}, fewer than min_recall {min_recall}"
    )


def recall(jaccard: float, bands: int, rows: int) -> float:
    """Returns the chance that two sets of this similarity share a band, 0 to 1.

    Source: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
    """
    return 1 - (1 - jaccard**rows) ** bands
