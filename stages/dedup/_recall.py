"""Measures the share of near pairs that `dedup.minhash` finds: by formula, and in a sample."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.stages.ops.tables.rows import put_json

if TYPE_CHECKING:
    from clipmill.stages.dedup._shingles import Unit

# Shapes: V distinct texts of a partition, S texts that are drawn.

FILE = "recall.json"
DRAWN = 200  # on average; each is compared with all others
BEYOND = (0, 0.05, 0.1, 0.2)  # above min_jaccard: where recall is reported


def drawn(text: pa.Array, node_V: np.ndarray, chance: float) -> list[str]:
    """Returns a sample of the texts, each drawn with that chance by a hash of its node."""
    hash_V = node_V * np.uint64(0x9E3779B97F4A7C15)
    return text.filter(pa.array(hash_V < min(chance, 1) * 2.0**64)).to_pylist()


def report(
    ctx: Context,
    sample: list[str],
    rows: Shards,
    edges: Shards,
    *,
    min_jaccard: float,
    bands: tuple[int, int],
    pieces: "tuple[Unit, int]",
) -> None:
    """Stores out/recall.json.

    `rows` have `plain` and `node`, a text and its number; `pieces` are their unit and size. A
    forest of edges is enough: it has each text's nearest.
    """
    best = ctx.reduce(partial(nearest_of_all, sample, pieces), rows, greatest)
    joined = ctx.reduce(partial(nearest_by_edges, sample), edges, greatest)
    best_S, joined_S = (state["jaccard"].astype(np.float32) for state in (best, joined))
    has_near_S = best_S >= np.float32(min_jaccard)
    levels = [s for s in (round(min_jaccard + more, 6) for more in BEYOND) if s <= 1]
    counts = {
        "bands": bands[0],
        "rows": bands[1],
        "pairs_compared": {str(s): round(recall(s, *bands), 6) for s in levels},
        "texts_drawn": {
            "all": len(sample),
            "with_a_near_one": int(has_near_S.sum()),
            "joined": int((has_near_S & (joined_S > 0)).sum()),
            "joined_to_the_nearest": int((has_near_S & (joined_S == best_S)).sum()),
        },
    }
    ctx.map(partial(put_json, FILE), [counts])


def nearest_of_all(sample: list[str], pieces: "tuple[Unit, int]", rows: pa.Table) -> State:
    """Returns (S,) the greatest Jaccard to another text of the partition."""
    from clipmill.stages.dedup._minhash import TextIndex
    from clipmill.stages.dedup._shingles import digests

    text = pa.array(sample, pa.large_string())
    index = TextIndex(text, digests(text), *pieces)
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
