"""train.filter_network: what decides the model, who is left out, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.stages.models import filter_network as fn
from clipmill.stages.models.filter_network import Embedder
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
    assert json.loads((some / "model.json").read_text())["trained_rows"] == 10
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
