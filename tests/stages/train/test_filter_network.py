"""train.filter_network: what decides the model, who is left out, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import Inputs
from pipeline.errors import StageError
from stages.models.filter_network import Embedder
from stages.ops.vectors import as_matrix, from_matrix
from stages.train.filter_network import TrainedFilterNetwork, batches, step_seed

ROWS, IMAGE_WIDTH, TEXT_WIDTH = 40, 60, 50
SMALL = {"width": 16, "train_steps": 12, "train_batch": 16, "learning_rate": 1e-2}


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


def test_a_model_its_card_and_a_log_are_stored(trained, table):
    out = trained(table)
    assert files(out).keys() == {"log.parquet", "model.json", "model.safetensors"}
    card = json.loads((out / "model.json").read_text())
    assert card["kind"] == "filter_network"
    assert (card["image_width"], card["text_width"], card["width"]) == (IMAGE_WIDTH, TEXT_WIDTH, 16)
    assert card["trained_rows"] == ROWS
    assert card["notes"][0].startswith("40 trusted pairs are few: expect scores")
    log = pq.read_table(out / "log.parquet")
    assert log["step"].to_pylist() == list(range(12))
    assert log["loss"][11].as_py() < log["loss"][0].as_py()


def test_two_trainings_give_equal_bytes_and_another_seed_others(trained, table):
    one = files(trained(table))
    assert files(trained(table)) == one
    assert files(trained(table, seed=1))["model.safetensors"] != one["model.safetensors"]


def test_order_and_shards_of_the_rows_do_not_matter(trained, table):
    backwards = table.take(pa.array(range(ROWS - 1, -1, -1)))
    cut = (backwards.slice(0, 7), backwards.slice(7, 0), backwards.slice(7))
    assert files(trained(*cut)) == files(trained(table))


def test_the_trained_network_tells_an_own_caption_from_another(trained, table):
    network = Embedder(str(trained(table, train_steps=80)))
    image_ND = network.embed_images(as_matrix(table["image_features"]))
    text_ND = network.embed_texts(as_matrix(table["text_features"]))
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


def test_fewer_rows_than_a_batch_are_refused_with_both_numbers(trained, table):
    with pytest.raises(StageError, match=r"40 rows.*a batch takes 41") as refused:
        trained(table, train_batch=41)
    assert "give 200 trusted rows or more" in str(refused.value)
    with pytest.raises(StageError, match=r"0 rows"):
        trained(table.slice(0, 0))


@pytest.mark.parametrize("column", ["image_features", "text_features"])
def test_features_that_are_null_in_every_row_are_refused(trained, table, column):
    place = table.column_names.index(column)
    nothing = table.set_column(place, column, pa.nulls(len(table), table[column].type))
    with pytest.raises(StageError, match=r"0 rows with an image, a caption and their features"):
        trained(nothing)


def test_a_loss_that_is_no_number_stops_at_its_step(trained, table):
    with pytest.raises(StageError, match=r"the loss is (nan|inf) at step \d+ of 12"):
        trained(table, learning_rate=1e30)


def test_a_pass_takes_each_row_at_most_once_in_an_order_of_its_own():
    uid = uids(10)
    taken = batches(uid, 3, seed=0, stage="dfn")
    first, second = ([next(taken) for _ in range(3)] for _ in range(2))
    for steps in (first, second):
        assert len(set(np.concatenate(steps))) == 9
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_a_batch_is_a_function_of_seed_stage_step_and_uids():
    def third(uid, **names):
        taken = batches(uid, 3, **{"seed": 0, "stage": "dfn", **names})
        return [uid[int(i)].as_py() for i in [next(taken) for _ in range(3)][2]]

    assert third(uids(10)) == third(uids(10).take(pa.array(range(9, -1, -1))))
    assert third(uids(10), seed=1) != third(uids(10))
    assert third(uids(10), stage="other") != third(uids(10))


def test_seeds_differ_by_step_purpose_stage_and_seed():
    first = step_seed("dropout", 0, seed=0, stage="dfn")
    assert first == step_seed("dropout", 0, seed=0, stage="dfn")
    others = {
        step_seed("dropout", 1, seed=0, stage="dfn"),
        step_seed("init", 0, seed=0, stage="dfn"),
        step_seed("dropout", 0, seed=1, stage="dfn"),
        step_seed("dropout", 0, seed=0, stage="it"),
    }
    assert len({first, *others}) == 5
    assert 0 <= first < 2**63
