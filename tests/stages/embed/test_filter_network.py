"""FilterNetworkEmbedding: nulls with reasons, batches that do not matter, misfits refused."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Worker
from clipmill.stages.embed.filter_network import FilterNetworkEmbedding
from clipmill.stages.models.filter_network import KIND, ROWS, CrossFitted, FilterNetwork, fold_of
from clipmill.stages.models.saved import put_model
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix

IMAGE_WIDTH, TEXT_WIDTH, WIDTH = 64, 32, 16  # BLAS sums tiny matrices by their own rules


@pytest.fixture
def worker(tmp_path) -> Worker:
    """One that is told of a stage's folder with a network of random weights."""
    (tmp_path / "out").mkdir()

    def put(name, path):
        path.rename(tmp_path / "out" / name)

    torch.manual_seed(0)
    sizes = {"image_width": IMAGE_WIDTH, "text_width": TEXT_WIDTH, "width": WIDTH, "words": 99}
    put_model(put, tmp_path, KIND, sizes, FilterNetwork(**sizes).state_dict())
    return Worker(
        seed=0, stage="emb", device="cpu", threads=1, scratch=tmp_path, model=str(tmp_path)
    )


def batch(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "image_features": from_matrix(rng.standard_normal((rows, IMAGE_WIDTH))),
            "text_features": from_matrix(rng.standard_normal((rows, TEXT_WIDTH))),
            "text": [f"a cat of {row % 5} colours, " * (row % 3) for row in range(rows)],
        }
    )


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(worker):
    embed = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    rows = batch(ROWS + 3)
    out = embed(rows)
    for name in ("image_embedding", "text_embedding"):
        row_ND = as_matrix(out[name])
        np.testing.assert_allclose(np.linalg.norm(row_ND, axis=1), 1, atol=1e-6)
        parts = [as_matrix(embed(rows.slice(start, 7))[name]) for start in range(0, ROWS + 3, 7)]
        np.testing.assert_array_equal(np.concatenate(parts), row_ND)


def test_missing_features_give_null_with_a_reason_and_spare_the_other(worker):
    embed = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    rows = batch(4)
    image, text, captions = (rows[name].to_pylist() for name in rows.column_names)
    captions[3] = None
    image[1] = image[3] = text[2] = text[3] = None
    out = embed(
        pa.table(
            {
                "image_features": pa.array(image, rows["image_features"].type),
                "text_features": pa.array(text, rows["text_features"].type),
                "text": captions,
            }
        )
    )
    assert out["image_embedding"].is_null().to_pylist() == [False, True, False, True]
    assert out["text_embedding"].is_null().to_pylist() == [False, False, True, True]
    lacks = ["no_image_features", "no_text_features", "no_image_features"]
    assert out["reason"].to_pylist() == [None, *lacks]
    np.testing.assert_array_equal(
        as_matrix(out["image_embedding"])[0], as_matrix(embed(rows)["image_embedding"])[0]
    )


@pytest.mark.parametrize("bad", [0.0, np.inf])
def test_features_that_are_zero_or_not_finite_are_as_if_missing(worker, bad):
    embed = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    rows = batch(3)
    image_NI = as_matrix(rows["image_features"]).copy()
    image_NI[1] = bad
    out = embed(rows.set_column(0, "image_features", from_matrix(image_NI)))
    assert out["reason"].to_pylist() == [None, "no_image_features", None]
    assert out["image_embedding"].is_null().to_pylist() == [False, True, False]
    assert out["text_embedding"].null_count == 0


def test_a_network_of_nan_is_refused_by_name_at_its_first_row(worker):
    sizes = {"image_width": IMAGE_WIDTH, "text_width": TEXT_WIDTH, "width": WIDTH, "words": 99}
    weights = FilterNetwork(**sizes).state_dict()
    weights["image.weight"][0, 0] = torch.nan

    def put(name, path):
        path.rename(worker.scratch / "out" / name)

    put_model(put, worker.scratch, KIND, sizes, weights)
    embed = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    with pytest.raises(StageError, match="65 of 65 vectors") as error:
        embed(batch(1))
    assert error.value.args[1] == "model 'stage:dfn'"


def test_the_words_of_a_caption_are_read_in_any_case_and_order(worker):
    embed = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    rows = batch(1)

    def told(caption: str) -> np.ndarray:
        return as_matrix(embed(rows.set_column(2, "text", pa.array([caption])))["text_embedding"])

    np.testing.assert_allclose(told("A Dog, a CAT!"), told("a cat a dog"), atol=1e-6)
    assert np.abs(told("a dog a dog") - told("a cat a dog")).max() > 0.01
    np.testing.assert_array_equal(told("-- !"), told(""))


@pytest.mark.parametrize("rows", [0, 2])
def test_types_are_those_declared_even_without_a_single_value(worker, rows):
    stage = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH)
    given = {name: pa.nulls(rows, batch(1)[name].type) for name in batch(1).column_names}
    out = stage.open(worker)(pa.table(given))
    declared = [column.dtype for column in stage.writes]
    assert out.schema.types == [*declared, pa.dictionary(pa.int32(), pa.string())]
    assert out.num_rows == rows


def test_a_checkpoint_elsewhere_is_the_same_network(worker):
    model = f"checkpoint:{worker.model}/out"
    elsewhere = FilterNetworkEmbedding(model=model, width=WIDTH).open(replace(worker, model=None))
    here = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    assert elsewhere(batch(3)).equals(here(batch(3)))


def test_a_network_of_another_width_is_refused(worker):
    with pytest.raises(StageError, match=r"16 wide, where 256 was planned(.|\n)*width: 16"):
        FilterNetworkEmbedding(model="stage:dfn").open(worker)


def test_models_that_are_no_filter_network_are_refused_with_the_settings():
    with pytest.raises(RecipeError, match=r"'reference'(.|\n)*stage:<name.* or checkpoint:<URI>"):
        FilterNetworkEmbedding(model="reference")


def test_a_network_from_elsewhere_is_pinned_and_that_of_a_stage_is_not(worker):
    pinned = []
    worker = replace(worker, pin=lambda *said: pinned.append(said))
    FilterNetworkEmbedding(model="stage:dfn", width=WIDTH).open(worker)
    assert pinned == []
    name = f"checkpoint:{worker.model}"
    FilterNetworkEmbedding(model=name, width=WIDTH).open(replace(worker, model=None))
    card = json.loads((worker.scratch / "out" / "model.json").read_text())
    assert pinned == [(name, card["sha256"])]


def test_each_row_has_the_heads_of_its_drawing_whatever_the_batch(worker):
    sizes = {"image_width": IMAGE_WIDTH, "text_width": TEXT_WIDTH, "width": WIDTH, "words": 99}
    network = CrossFitted(3, **sizes)
    network.line_K2[:] = torch.tensor([[0.5, -0.2], [0.9, 0.1], [0.8, 0.0]])

    def put(name, path):
        path.rename(worker.scratch / "out" / name)

    put_model(put, worker.scratch, KIND, {**sizes, "folds": 3, "seed": 7}, network.state_dict())
    rows = batch(ROWS)
    uid, keeper = (
        pa.array([b"%16d" % (row % by) for row in range(ROWS)], pa.binary(16)) for by in (ROWS, 5)
    )
    rows = rows.append_column("uid", uid).append_column("duplicate_of", keeper)
    embed = FilterNetworkEmbedding(model="stage:dfn", width=WIDTH, folds=3).open(worker)
    out = embed(rows)
    parts = [embed(rows.slice(start, 7)) for start in range(0, ROWS, 7)]
    image_ND, text_ND = (as_matrix(out[f"{of}_embedding"]) for of in ("image", "text"))
    np.testing.assert_array_equal(
        np.concatenate([as_matrix(part["text_embedding"]) for part in parts]), text_ND
    )
    fold_N = fold_of(keeper, 3, seed=7)
    assert set(fold_N) == {0, 1, 2}
    assert out["unmet_fold"].to_pylist() == fold_N.tolist()
    for row, fold in enumerate(fold_N):
        head, (slope, intercept) = network.heads[fold], network.line_K2[fold].tolist()
        with torch.inference_mode():
            image, text = (
                torch.tensor(as_matrix(rows[f"{of}_features"])[[row]]) for of in ("image", "text")
            )
            cosine = (
                head.embed_images(image) * head.embed_texts(text, rows["text"][row : row + 1])
            ).sum()
        assert image_ND[row] @ text_ND[row] == pytest.approx(
            slope * float(cosine) + intercept, abs=1e-5
        )
