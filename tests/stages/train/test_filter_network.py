"""train.filter_network: what decides the model, who is left out, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.models import filter_network as fn
from clipmill.stages.models.filter_network import Embedder, drawing_of
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix
from clipmill.stages.train.filter_network import TrainedFilterNetwork

ROWS, IMAGE_WIDTH, TEXT_WIDTH = 40, 60, 50
SMALL = {"width": 16}


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    """For the tests' time: the fit grows with the cube of the buckets."""
    monkeypatch.setattr(fn, "WORDS", 256)


def uids(count: int) -> pa.Array:
    return pa.array([bytes([i * 37 % 256]) * 16 for i in range(count)], pa.binary(16))


@pytest.fixture
def table() -> pa.Table:
    """Pairs of which image and text are two views of the same three numbers."""
    rng = np.random.default_rng(0)
    hidden_N3 = rng.standard_normal((ROWS, 3))
    image_NI = hidden_N3 @ rng.standard_normal((3, IMAGE_WIDTH))
    text_NT = hidden_N3 @ rng.standard_normal((3, TEXT_WIDTH))
    return pa.table(
        {
            "uid": uids(ROWS),
            "image_features": from_matrix(image_NI),
            "text_features": from_matrix(text_NT),
            "text": [f"caption {i}" for i in range(ROWS)],
        }
    )


@pytest.fixture
def trained(launching_context, memory_shards):
    """The `out` folder of a training on these tables, one a shard."""

    def make(*tables, seed=0, **settings) -> Path:
        ctx = launching_context(seed)
        stage = TrainedFilterNetwork(**{**SMALL, **settings})
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        return ctx.out

    return make


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_model_and_its_card_are_stored(trained, table):
    out = trained(table)
    assert files(out).keys() == {"model.json", "model.safetensors"}
    card = json.loads((out / "model.json").read_text())
    assert card["kind"] == "filter_network"
    assert (card["image_width"], card["text_width"], card["width"]) == (IMAGE_WIDTH, TEXT_WIDTH, 16)
    assert card["words"] == fn.WORDS
    assert card["trained_rows"] == ROWS
    assert card["notes"][0].startswith("40 pairs to learn from are few: expect scores")


def test_rows_give_equal_bytes_however_they_lie(trained, table):
    assert files(trained(table.slice(20), table.slice(0, 20))) == files(trained(table))


def test_the_trained_network_tells_an_own_caption_from_another(trained, table):
    network = Embedder(str(trained(table)))
    image_ND = network.embed_images(as_matrix(table["image_features"]))
    text_ND = network.embed_texts(as_matrix(table["text_features"]), table["text"])
    cosine_NN = image_ND @ text_ND.T
    own_N = np.diag(cosine_NN)
    assert (own_N[:, None] > cosine_NN).mean() > 0.85


def test_rows_that_lack_something_or_are_not_kept_are_left_out(trained, table):
    whole = files(trained(table))["model.safetensors"]
    other = table.slice(0, 4).set_column(0, "uid", pa.array([b"x" * 16] * 4, pa.binary(16)))
    no_image, no_text, no_caption, dropped = (other.slice(i, 1) for i in range(4))
    null = pa.nulls(1)
    lacking = [
        no_image.set_column(1, "image_features", null.cast(table["image_features"].type)),
        no_text.set_column(2, "text_features", from_matrix(np.full((1, TEXT_WIDTH), np.inf))),
        no_caption.set_column(3, "text", null.cast(pa.string())),
    ]
    assert files(trained(pa.concat_tables([table, *lacking])))["model.safetensors"] == whole
    keep = pa.array([True] * ROWS + [False])
    kept = pa.concat_tables([table, dropped]).append_column("keep", keep)
    assert files(trained(kept))["model.safetensors"] == whole
    assert files(trained(kept.drop_columns(["keep"])))["model.safetensors"] != whole


def test_features_without_direction_are_left_out_up_to_a_tenth_of_them(trained, table):
    good = pa.concat_tables(
        [
            table,
            table.set_column(
                0, "uid", pa.array([b"%016d" % i for i in range(ROWS)], pa.binary(16))
            ),
        ]
    )
    whole = files(trained(good))["model.safetensors"]
    other = table.slice(0, 8).set_column(
        0, "uid", pa.array([bytes([i]) * 16 for i in range(8)], pa.binary(16))
    )
    zero = other.set_column(1, "image_features", from_matrix(np.zeros((8, IMAGE_WIDTH))))
    assert files(trained(pa.concat_tables([good, zero])))["model.safetensors"] == whole
    many = pa.concat_tables([table, zero, zero, zero, zero])
    with pytest.raises(StageError, match="32 of 72 vectors") as error:
        trained(many)
    assert error.value.args[1] == "column 'image_features'"


def test_of_more_rows_than_it_takes_it_draws_the_same_however_they_lie(trained, table):
    cut = [table.slice(start, 3) for start in range(0, ROWS, 3)]  # drawn on the way, too
    some = trained(*cut, most_rows=10)
    card = json.loads((some / "model.json").read_text())
    assert card["trained_rows"] == 10
    assert card["notes"][-1].startswith("it learnt from 10 of 40 rows: expect a cut by share to")
    assert files(some) == files(trained(table, most_rows=10))
    assert files(some) != files(trained(table, most_rows=10, seed=1))


def test_fewer_than_two_rows_are_refused(trained, table):
    for rows in (0, 1):
        with pytest.raises(StageError, match=rf"{rows} rows with an image, a caption") as refused:
            trained(table.slice(0, rows))
        assert "give 200 trusted rows or more" in str(refused.value)


@pytest.mark.parametrize("column", ["image_features", "text_features"])
def test_features_that_are_null_in_every_row_are_refused(trained, table, column):
    place = table.column_names.index(column)
    nothing = table.set_column(place, column, pa.nulls(len(table), table[column].type))
    with pytest.raises(StageError, match=r"0 rows with an image, a caption and their features"):
        trained(nothing)


@pytest.mark.parametrize("column", ["image_features", "text_features"])
def test_features_that_are_alike_in_every_row_are_refused(trained, table, column):
    place = table.column_names.index(column)
    alike = table[column].take(pa.array([0] * ROWS))
    with pytest.raises(StageError, match=r"the features of all rows are alike, 40 of them"):
        trained(table.set_column(place, column, alike))


@pytest.fixture
def with_copies(table) -> pa.Table:
    """The pairs, of which each of the last eight names one of the first eight as its copy."""
    copies = pa.concat_arrays([pa.nulls(ROWS - 8, pa.binary(16)), uids(8)])
    return table.append_column("duplicate_of", copies)


def folds_of(table: pa.Table, folds: int) -> np.ndarray:
    return fn.fold_of(drawing_of(table), folds, 0)


def test_heads_of_a_fold_are_equal_bytes_without_a_pair_of_it_and_its_copy(trained, with_copies):
    whole = load_file(trained(with_copies, folds=2) / "model.safetensors")
    gone = with_copies.filter(pa.array([n not in (3, ROWS - 8 + 3) for n in range(ROWS)]))
    left = load_file(trained(gone, folds=2) / "model.safetensors")
    own, copy = folds_of(with_copies, 2)[[3, ROWS - 8 + 3]]
    assert own == copy
    same = {fold: True for fold in "01"}
    for name in whole.keys() - {"line_K2"}:
        fold = name.split(".")[1]
        same[fold] &= torch.equal(whole[name], left[name])
    assert same == {str(own): True, str(1 - own): False}


def test_folds_give_equal_bytes_however_the_rows_lie(trained, with_copies):
    cut = [with_copies.slice(start, 7) for start in range(0, ROWS, 7)]
    assert files(trained(*reversed(cut), folds=2)) == files(trained(with_copies, folds=2))


def test_copies_count_once(table):
    image_NI, text_NT = (as_matrix(table[f"{of}_features"]) for of in ("image", "text"))
    captions = table["text"].combine_chunks()
    network = fn.fitted(image_NI, text_NT, pa.chunked_array([captions]), 16)
    twice_N = np.repeat(np.arange(ROWS), [3] * 10 + [1] * (ROWS - 10))
    weight_N = np.array([1 / 3] * 30 + [1] * (ROWS - 10))
    again = fn.fitted(
        image_NI[twice_N], text_NT[twice_N], captions.take(pa.array(twice_N)), 16, weight_N
    )

    def cosines(network) -> np.ndarray:
        with torch.inference_mode():
            image_ND = network.embed_images(torch.tensor(image_NI))
            return (
                image_ND @ network.embed_texts(torch.tensor(text_NT), captions.to_pylist()).T
            ).numpy()

    np.testing.assert_allclose(cosines(again), cosines(network), atol=1e-4)


def test_left_out_rows_of_all_folds_score_on_one_scale(trained, with_copies):
    network = Embedder(str(trained(with_copies, folds=2)), folds=2)
    fold_N = network.fold_of(with_copies)
    image_NI, text_NT = (as_matrix(with_copies[f"{of}_features"]) for of in ("image", "text"))
    image_ND = network.embed_images(image_NI, fold_N)
    text_ND = network.embed_texts(text_NT, with_copies["text"], fold_N)
    for row_ND in (image_ND, text_ND):
        np.testing.assert_allclose(np.linalg.norm(row_ND, axis=1), 1, atol=1e-6)
    score_N = np.vecdot(image_ND.astype(np.float64), text_ND)
    weight_N = np.array([0.5] * 8 + [1.0] * (ROWS - 16) + [0.5] * 8)
    raw_N = np.empty(ROWS)
    means, deviations = [], []
    for fold, head in enumerate(network.heads):
        of = fold_N == fold
        with torch.inference_mode():
            image_BD = head.embed_images(torch.tensor(image_NI[of]))
            captions = with_copies["text"].filter(pa.array(of))
            raw_N[of] = (image_BD * head.embed_texts(torch.tensor(text_NT[of]), captions)).sum(1)
        assert (np.argsort(score_N[of]) == np.argsort(raw_N[of])).all()
        means.append(np.average(score_N[of], weights=weight_N[of]))
        deviations.append(np.sqrt(np.average((score_N[of] - means[-1]) ** 2, weights=weight_N[of])))
    np.testing.assert_allclose(means, means[0], atol=1e-6)
    np.testing.assert_allclose(deviations, deviations[0], rtol=1e-5)
    assert np.std([raw_N[fold_N == fold].mean() for fold in range(2)]) > 0.01


def test_half_the_pool_in_one_copy_group_lies_in_one_fold_and_counts_once(trained, with_copies):
    half = pa.array([uids(1)[0].as_py() if 0 < n <= ROWS // 2 else None for n in range(ROWS)])
    many = with_copies.set_column(4, "duplicate_of", half.cast(pa.binary(16)))
    network = Embedder(str(trained(many, folds=2)), folds=2)
    assert len(set(network.fold_of(many)[: ROWS // 2 + 1])) == 1
    assert all(np.isfinite(part_K2).all() for part_K2 in network.ends)


@pytest.mark.parametrize(("copies", "drawings"), [(ROWS, 1), (ROWS - 12, 13)])
def test_drawings_of_one_fold_are_refused(trained, with_copies, copies, drawings):
    one = pa.array([uids(1)[0].as_py() if n < copies else None for n in range(ROWS)])
    alike = with_copies.set_column(4, "duplicate_of", one.cast(pa.binary(16)))
    with pytest.raises(StageError, match=rf"{drawings} drawings, \d in the least of 2 folds"):
        trained(alike, folds=2)


def test_folds_are_refused_by_what_reads_a_network_without(trained, with_copies):
    folder = str(trained(with_copies, folds=2))
    with pytest.raises(StageError, match="a network of 2 folds, where 1 was planned"):
        Embedder(folder)
