"""Retrieve: against a plain loop over all pairs, in blocks, shards and cells."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.schema import CAPTIONS
from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.caption import retrieve
from clipmill.stages.caption.retrieve import Retrieve

D = 6
WORDS = ("red", "blue", "cat", "dog", "star", "ein", "www.a.com", "x.org", "猫", "🙂")


def drawn(rows: int, seed: int = 0) -> pa.Table:
    """Rows of few vectors and few captions, so that many are equal; some lack one or the other."""
    rng = np.random.default_rng(seed)
    kinds_KD = rng.integers(-2, 3, (rows // 2, D)).astype(np.float32)
    image_ND, text_ND = kinds_KD[rng.integers(0, len(kinds_KD), (2, rows))]
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(rows)]
    text_ND = np.array([text_ND[texts.index(text)] for text in texts])  # equal texts, equal vectors
    missing = rng.random((3, rows)) < 0.1
    return pa.table(
        {
            "uid": pa.array([(n % 97).to_bytes(16, "big") for n in range(rows)], pa.binary(16)),
            "text": pa.array(texts, mask=missing[0]),
            "image_embedding": vectors(image_ND, missing[1]),
            "text_embedding": vectors(text_ND, missing[2]),
            "keep": pa.array(rng.random(rows) < 0.9),
        }
    )


def vectors(row_ND, missing_N) -> pa.Array:
    rows = [None if gone else row.tolist() for row, gone in zip(row_ND, missing_N, strict=True)]
    return pa.array(rows, pa.list_(pa.float32(), D))


def unit(vector) -> np.ndarray | None:
    vector = np.array(vector if vector is not None else [0], np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32) if vector.any() else None


def by_a_loop(rows: pa.Table, most: int, corpus: list[dict] | None = None) -> list:
    """text and cosine of each row's nearest, None where it has none."""
    texts = {}
    for row in rows.to_pylist() if corpus is None else corpus:
        text, vector = row["text"], unit(row["text_embedding"])
        fits = text is not None and 3 <= len(text.split()) <= 81
        fits = fits and not re.search(r"www\.|\.org|🙂", text)
        if fits and vector is not None and row.get("keep", True):
            texts[text] = vector.astype(np.float64)
    found = []
    for row in rows.to_pylist():
        query = unit(row["image_embedding"])
        near = []
        if query is not None and row["keep"]:
            scored = [(-(query @ it), text) for text, it in texts.items() if text != row["text"]]
            near = [(text, -cosine) for cosine, text in sorted(scored)[:most]]
        found.append(near or None)
    return found


def ran(ctx, shards, *, model="m", inputs=None, **settings) -> pa.Table:
    made_by = {"image_embedding": model, "text_embedding": "m"}
    Retrieve(**settings).run(Inputs(rows=shards, model_of=made_by, **(inputs or {})), ctx)
    return pa.concat_tables(ctx.stored).unify_dictionaries()


def pairs(out: pa.Table) -> list:
    return [
        texts and list(zip((it["text"] for it in texts), cosines, strict=True))
        for texts, cosines in zip(
            *(out[n].to_pylist() for n in ("captions", "caption_cosines")), strict=True
        )
    ]


def same(found: list, expected: list) -> bool:
    """The same texts in the same order, and cosines to float32."""
    return [row and [text for text, _ in row] for row in found] == [
        row and [text for text, _ in row] for row in expected
    ] and np.allclose(
        [cosine for row in found if row for _, cosine in row],
        [cosine for row in expected if row for _, cosine in row],
        atol=1e-6,
    )


@pytest.fixture
def centroids(tmp_path):
    """Seven cells, as a Parquet of centroids."""
    rows = np.random.default_rng(5).standard_normal((7, D)).tolist()
    pq.write_table(pa.table({"centroid": rows}), tmp_path / "cells.parquet")
    return str(tmp_path / "cells.parquet")


@pytest.mark.parametrize("seed", range(4))
def test_all_pairs_give_what_a_loop_gives_whatever_the_shards_and_blocks(
    seed, memory_shards, memory_context, monkeypatch
):
    rows = drawn(150, seed)
    expected = by_a_loop(rows, 3)
    assert sum(map(bool, expected)) > 100
    for cuts, block in (((), 10_000), ((40, 41, 90), 7)):
        monkeypatch.setattr(retrieve, "BLOCK", block)
        bounds = [0, *cuts, len(rows)]
        shards = memory_shards(*(rows[a:b] for a, b in itertools.pairwise(bounds)))
        assert same(pairs(ran(memory_context(), shards)), expected)


def test_as_many_cells_as_there_are_give_the_same_as_all_pairs(
    memory_shards, memory_context, centroids
):
    rows = drawn(150)
    shards = memory_shards(rows[:70], rows[70:])
    whole = ran(memory_context(), shards, most=2)
    celled = ran(memory_context(), shards, most=2, centroids=centroids, cells=7)
    assert celled.to_pylist() == whole.to_pylist()


def test_one_cell_gives_the_nearest_in_that_cell(memory_shards, memory_context, centroids):
    rows = drawn(150)
    out = ran(memory_context(), memory_shards(rows[:70], rows[70:]), centroids=centroids)
    centre_KD = np.array([unit(it) for it in pq.read_table(centroids)["centroid"].to_pylist()])

    def cell(vector) -> int:
        return int(np.argmax(centre_KD @ unit(vector))) if unit(vector) is not None else -1

    cells = [cell(it) for it in rows["text_embedding"].to_pylist()]
    expected = []
    for n, row in enumerate(rows.to_pylist()):
        mine = [k for k, it in enumerate(cells) if it == cell(row["image_embedding"])]
        near = by_a_loop(rows.slice(n, 1), 3, rows.take(mine).to_pylist())
        expected += near
    assert same(pairs(out), expected)


def test_rows_without_texts_say_why_and_missing_texts_are_counted(memory_shards, memory_context):
    texts = ["a red cat", "a blue dog", "a red cat", "two words", None]
    rows = pa.table(
        {
            "uid": pa.array([bytes([n]) * 16 for n in range(5)], pa.binary(16)),
            "text": texts,
            "image_embedding": vectors(np.eye(5, D), [0, 0, 0, 1, 0]),
            "text_embedding": vectors(np.eye(5, D), [0, 0, 0, 0, 0]),
            "keep": [True, True, True, True, False],
        }
    )
    out = ran(memory_context(), memory_shards(rows), most=3)
    assert [texts and [it["text"] for it in texts] for texts in out["captions"].to_pylist()] == [
        ["a blue dog"],
        ["a red cat"],
        ["a blue dog"],
        None,
        None,
    ]
    assert out["captions_missing"].to_pylist() == [2, 2, 2, None, None]
    assert out["reason"].to_pylist() == [None, None, None, "no_embedding", "dropped_before"]
    assert out["captions"][0].as_py()[0] == {
        "text": "a blue dog",
        "source": "it",
        "model": "m",
        "prompt_id": None,
        "label": "retrieved",
    }
    assert out.schema.field("captions").type == CAPTIONS.dtype
    alone = ran(memory_context(), memory_shards(rows[:1]))
    assert alone["reason"].to_pylist() == ["nothing_near"]


def corpus(path, texts, text_ND, model: bytes | None = b"m") -> str:
    table = pa.table({"text": texts, "text_embedding": vectors(text_ND, [0] * len(texts))})
    marks = {b"clipmill.model": model} if model else {}
    pq.write_table(table.replace_schema_metadata(marks), path, row_group_size=20)
    return str(path)


def test_a_corpus_in_files_is_searched_in_the_same_way(
    tmp_path, memory_shards, memory_context, centroids
):
    rows, other = drawn(60), drawn(90, seed=9).drop_columns(["keep"])
    other = other.filter(pa.compute.is_valid(other["text_embedding"]))
    (tmp_path / "texts").mkdir()
    text_ND = np.array(other["text_embedding"].to_pylist())
    texts = other["text"].to_pylist()
    corpus(tmp_path / "texts" / "a.parquet", texts[:50], text_ND[:50])
    corpus(tmp_path / "texts" / "b.parquet", texts[50:], text_ND[50:])
    expected = by_a_loop(rows, 3, other.to_pylist())
    at = str(tmp_path / "texts")
    assert same(pairs(ran(memory_context(), memory_shards(rows), corpus=at)), expected)
    celled = ran(memory_context(), memory_shards(rows), corpus=at, centroids=centroids, cells=7)
    assert same(pairs(celled), expected)


def test_texts_of_another_model_are_refused(tmp_path, memory_shards, memory_context):
    shards = memory_shards(drawn(9))
    with pytest.raises(StageError, match="'image_embedding' is of model 'other'"):
        ran(memory_context(), shards, model="other")
    for model, found in (
        (b"n", "of model 'm', and 'text_embedding' of 'n'"),
        (None, "which model"),
    ):
        at = corpus(tmp_path / "it.parquet", ["a red cat"], np.eye(1, D), model)
        with pytest.raises(StageError, match=found):
            ran(memory_context(), shards, corpus=at)


def test_a_text_beside_several_images_counts_by_the_nearest(memory_shards, memory_context):
    near, far, other = [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]
    asks = ["one two three", near]
    twice, once = "a red cat", "a blue dog"
    orders = itertools.permutations([asks, [twice, near], [twice, far], [once, other]])
    for rows in [*orders][::5]:
        texts, vectors_N = zip(*rows, strict=True)
        pool = pa.table(
            {
                "uid": pa.array([n.to_bytes(16, "big") for n in range(4)], pa.binary(16)),
                "text": list(texts),
                "image_embedding": vectors(np.array(vectors_N), np.zeros(4, bool)),
            }
        )
        shards = memory_shards(*(pool.slice(n, 1) for n in range(4)))
        out = ran(memory_context(), shards, column="image_embedding", most=2)
        found = out["captions"].to_pylist()[texts.index(asks[0])]
        assert [it["text"] for it in found] == [twice, once]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="`cells` without `centroids`"):
        Retrieve(cells=2)
    with pytest.raises(RecipeError, match="min_words: 9 and max_words: 4"):
        Retrieve(min_words=9, max_words=4)


def test_text_to_text_finds_the_other_wording(memory_shards, memory_context):
    rows = drawn(80)
    out = ran(memory_context(), memory_shards(rows), query="text_embedding", most=1)
    as_query = rows.set_column(2, "image_embedding", rows["text_embedding"])
    assert same(pairs(out), by_a_loop(as_query, 1))
