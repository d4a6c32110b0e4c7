"""evaluate.probe: scikit-learn's scores, folds, classes of one picture, and what it refuses."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.ledger.proof.measured import terms
from clipmill.stages.evaluate._metrics import best_ranks
from clipmill.stages.evaluate.probe import FOLDS, PROBES, Probe, folds_of, recall
from clipmill.stages.ops.vectors.matrices import from_matrix

WIDTH, CLASSES = 12, 4


def pictures(count=80, seed=0, apart=1.0):
    """Vectors in clouds by class, of uneven size."""
    rng = np.random.default_rng(seed)
    class_N = np.sort(rng.integers(0, CLASSES, count) * rng.integers(0, 2, count))
    class_N[:CLASSES] = class_N[-CLASSES:] = range(CLASSES)  # two of each at least
    centre_CD = np.random.default_rng(9).normal(0, apart, (CLASSES, WIDTH))
    return centre_CD[class_N] + rng.normal(0, 1, (count, WIDTH)), class_N


@pytest.fixture(scope="module")
def sklearn():
    """Its classifiers. Their import takes seconds: those of no test."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

    near = KNeighborsClassifier(10, metric="cosine", algorithm="brute")
    shrunk = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5)
    others = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute")
    return {
        "near": lambda x: others.fit(x).kneighbors(return_distance=False),
        "ridge": lambda x, y, other: RidgeClassifier(1.0).fit(x, y).decision_function(other),
        "neighbours": lambda x, y, other: near.fit(x, y).predict_proba(other),
        "discriminant": lambda x, y, other: shrunk.fit(x, y).decision_function(other),
    }


@pytest.mark.parametrize("probe", PROBES)
def test_scores_are_those_of_scikit_learn(sklearn, probe):
    (image_ND, class_N), (other_TD, _) = pictures(), pictures(1_100, seed=1)
    found = PROBES[probe](image_ND, class_N, CLASSES, other_TD)
    np.testing.assert_allclose(found, sklearn[probe](image_ND, class_N, other_TD), atol=1e-6)


def test_every_class_has_pictures_outside_each_fold():
    _, class_N = pictures(60)
    good_N = np.arange(60) != 5
    fold_N = folds_of([f"{row:03}" for row in range(60)], class_N, good_N)
    assert fold_N[5] == -1
    assert set(fold_N[good_N]) == set(range(FOLDS))
    for fold in range(FOLDS):
        assert set(class_N[(fold_N >= 0) & (fold_N != fold)]) == set(range(CLASSES))
    again = folds_of([f"{row:03}" for row in range(60)][::-1], class_N[::-1], good_N[::-1])
    assert again[::-1].tolist() == fold_N.tolist()


@pytest.fixture
def probed(memory_context, tmp_path):
    """Results, and the folder with the ranks, of these tasks of one model."""

    def run(tasks: dict[str, pa.Table], kind="classification", **settings):
        (tmp_path / "out").mkdir(exist_ok=True)
        for name, table in tasks.items():
            pq.write_table(table, tmp_path / "out" / f"seed-3.{name}.parquet")
        entries = {name: {"kind": kind, "sha256": name} for name in tasks}
        model = {"card": "out/seed-3.model.json", "model": "abc", "seed": 3, "rules": "1"}
        stored = json.dumps({"models": [{**model, "tasks": entries, "averages": {}}]})
        (tmp_path / "out" / "results.json").write_text(stored)
        ctx = memory_context()
        Probe(**settings).run(Inputs(rows=[], data=str(tmp_path)), ctx)
        return json.loads((ctx.out / "results.json").read_text()), ctx.out

    return run


def ranked(image_ND, class_N) -> pa.Table:
    """A task's table as evaluate.zero_shot stores it."""
    columns = {"key": [f"{row:04}" for row in range(len(class_N))], "label": class_N}
    return pa.table(columns | {"embedding": from_matrix(np.asarray(image_ND, np.float32))})


def test_classes_that_lie_apart_are_told_and_mixed_ones_are_not(probed):
    far, mixed = pictures(apart=30), pictures(apart=0)
    results, out = probed({"far": ranked(*far), "mixed": ranked(*mixed)})
    (model,) = results["models"]
    assert (model["card"], model["seed"], model["model"]) == ("out/seed-3.model.json", 3, "abc")
    for probe in PROBES:
        told, guessed = (model["tasks"][f"{task}_{probe}"] for task in ("far", "mixed"))
        assert told["metrics"]["acc1"]["value"] == 1
        assert guessed["metrics"]["mean_per_class_recall"]["value"] < 0.5
        assert (told["metrics"]["acc1"]["chance"], told["metric"]) == (1 / CLASSES, "acc1")
    ranks = pq.read_table(out / "seed-3.mixed_ridge.parquet")
    hits = pa.compute.equal(ranks["rank"], 0).to_numpy()
    assert hits.mean() == pytest.approx(model["tasks"]["mixed_ridge"]["metrics"]["acc1"]["value"])
    assert results["notes"] == []


def test_images_find_images_of_their_class_as_scikit_learns_neighbours_do(sklearn, probed):
    image_ND, class_N = pictures(300)
    image_ND[6] = np.nan
    results, out = probed({"mixed": ranked(image_ND, class_N)}, probes=["images"])
    task = results["models"][0]["tasks"]["mixed_images"]
    good_N = np.arange(300) != 6
    near_N10 = sklearn["near"](np.asarray(image_ND[good_N], np.float32))
    is_alike_N10 = class_N[good_N][near_N10] == class_N[good_N][:, None]
    ranks = pq.read_table(out / "seed-3.mixed_images.parquet")
    for k in (1, 5, 10):
        stored = task["metrics"][f"image_recall@{k}"]
        assert stored["value"] == pytest.approx(is_alike_N10[:, :k].any(1).sum() / 300)
        assert terms(f"image_recall@{k}", stored, ranks) is not None  # arms are compared by it
    others_N = np.bincount(class_N)[class_N] - 1
    assert task["metrics"]["image_recall@1"]["chance"] == pytest.approx(others_N.mean() / 299)
    assert (task["metric"], ranks["rank"].to_pylist()[6]) == ("image_recall@1", None)


def test_equal_images_share_the_places():
    class_N = np.array([0, 0, 1, 1])
    found = recall(best_ranks(*(np.ones((4, 1)),) * 2, *(class_N,) * 2, is_own=True), class_N)
    assert found["image_recall@1"]["value"] == pytest.approx(1 / 3)  # that of guessing
    assert found["image_recall@1"]["chance"] == pytest.approx(1 / 3)


def test_classes_of_one_picture_are_named_and_left_out_and_a_task_of_nothing_else_has_no_result(
    probed,
):
    image_ND, class_N = pictures(apart=30)
    lone = ranked(np.vstack([image_ND, image_ND[:2]]), np.append(class_N, [7, 9]))
    results, _ = probed({"some": lone, "none": ranked(image_ND[:2], [0, 1])}, probes=["ridge"])
    tasks = results["models"][0]["tasks"]
    assert tasks.keys() == {"some_ridge"}
    assert (tasks["some_ridge"]["pictures"], tasks["some_ridge"]["classes"]) == (80, CLASSES)
    assert results["notes"] == [
        "some: no probe is asked for classes of one picture: 7, 9",
        "none: no two classes have two pictures or more",
    ]


def test_a_picture_without_a_vector_is_a_miss_and_teaches_nothing(probed):
    image_ND, class_N = pictures(apart=30)
    image_ND[6] = np.nan
    results, out = probed({"far": ranked(image_ND, class_N)})
    for probe in PROBES:
        metrics = results["models"][0]["tasks"][f"far_{probe}"]["metrics"]
        assert metrics["acc1"]["value"] == pytest.approx(79 / 80)
        ranks = pq.read_table(out / f"seed-3.far_{probe}.parquet")["rank"].to_pylist()
        assert [row for row, rank in enumerate(ranks) if rank is None] == [6]


def test_tasks_without_classes_are_passed_over(probed):
    results, _ = probed({"words": pa.table({"key": ["0"]})}, kind="retrieval")
    assert results["models"][0]["tasks"] == {}


def test_data_without_embeddings_or_results_are_refused(probed, memory_context, tmp_path):
    table = ranked(*pictures()).drop_columns("embedding")
    with pytest.raises(StageError, match=r"colours\.parquet without embeddings") as error:
        probed({"colours": table})
    assert "embeddings: true" in error.value.args[2]
    with pytest.raises(StageError, match=r"no results\.json"):
        Probe().run(Inputs(rows=[], data=str(tmp_path / "nothing")), memory_context())
